"""Renders colour, metric depth and segmentation of one simulator state.

LIBERO's own camera observations give no depth in metres, break on segmentation with NumPy 2, and update the
scene for every modality. All pictures have robosuite's raw orientation (bottom row first); the processor step
turns them.
"""

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np

from multismolvla.corruption.cross_modal import Displacement

#: Farther than this a depth sensor sees nothing; also the end of LeRobot's depth video range.
MAX_DEPTH_M = 10.0


def _gl_context(width: int, height: int) -> Any:
    """An off-screen GL context of the back end in ``MUJOCO_GL`` (default ``egl``).

    ``mujoco.GLContext`` is bound at the first import of mujoco, which may come before anybody chose a back
    end.

    Raises:
        ValueError: unknown back end.
        RuntimeError: the back end is not installed; names the package.
    """
    backend = os.environ.get("MUJOCO_GL", "").lower() or "egl"
    if backend not in ("egl", "osmesa", "glfw", "glx"):
        raise ValueError(f"MUJOCO_GL={backend!r} is not known; expected 'egl' (default) or 'osmesa'.")
    module = "glfw" if backend == "glx" else backend
    try:
        context = importlib.import_module(f"mujoco.{module}").GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise RuntimeError(
            f"No off-screen GL context with MUJOCO_GL={backend}: {error}. On Debian: "
            "apt install libegl1 libegl-mesa0 libgl1-mesa-dri (egl) or libosmesa6 (osmesa)."
        ) from error
    if not _ALIVE:
        atexit.unregister(_free_all)
        atexit.register(_free_all)  # anew: it must run before the exit handler of the display, made just now
    _ALIVE.add(context)
    return context


#: Contexts not yet collected. One that lives on at the end of the process complains about modules that are
#: gone.
_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def _free_all() -> None:
    for context in list(_ALIVE):
        context.free()


class SceneRenderer:
    """Off-screen renderer of one MuJoCo model; a hard reset of LIBERO builds a new model.

    Args:
        model: the model.
        width: picture width in pixels.
        height: picture height in pixels.
        quality: ``"default"`` (4 samples per pixel, reflections) or ``"fast"`` (neither; on a CPU up to twice
            as fast, the picture changes by about 1 %). With multisampling depth is that of a point 0.4 pixels
            beside the pixel's centre: up to 3 mm off on a slanted floor one metre away.
    """

    def __init__(self, model: Any, width: int, height: int, quality: str = "default") -> None:
        self._model = model
        # A frame buffer of the picture's own size: software GL clears the whole buffer in every pass.
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        if quality == "fast":
            model.vis.quality.offsamples = 0
        self._gl: Any = _gl_context(width, height)
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        if quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # Reversed z: floats keep millimetres far away, and the far plane is exactly 0.
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes are not for the eye
        self._site_groups = self._option.sitegroup.copy()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rgb = np.empty((height, width, 3), np.uint8)
        self._depth = np.empty((height, width), np.float32)

    def render(
        self,
        data: Any,
        camera: str,
        *,
        color: bool = True,
        depth: bool = True,
        geoms: bool = True,
        displaced: Displacement | None = None,
    ) -> dict[str, np.ndarray]:
        """Render one camera.

        Args:
            data: the simulation's ``MjData``.
            camera: camera name in the model.
            color: whether to return ``"rgb"``: uint8 (H, W, 3).
            depth: whether to return ``"depth"``: float32 (H, W, 1) metres along the optical axis, 0 = nothing
                within 10 m.
            geoms: whether to return ``"geoms"`` (one more pass): int32 (H, W) geom ids, -1 = none.
            displaced: where the camera is instead of at its place.

        Raises:
            ValueError: the model has no such camera.
        """
        self._camera.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self._camera.fixedcamid < 0:
            names = [self._model.camera(i).name for i in range(self._model.ncam)]
            raise ValueError(f"The scene has no camera {camera!r}; it has {names}.")
        with _displaced(data, self._camera.fixedcamid, displaced):
            return self._render(data, color, depth, geoms)

    def _render(self, data: Any, color: bool, depth: bool, geoms: bool) -> dict[str, np.ndarray]:
        self._gl.make_current()
        pictures: dict[str, np.ndarray] = {}
        if color or depth:
            self._update_scene(data)
            mujoco.mjr_render(self._viewport, self._scene, self._context)
            mujoco.mjr_readPixels(self._rgb, self._depth if depth else None, self._viewport, self._context)
            if color:
                pictures["rgb"] = self._rgb.copy()
            if depth:
                pictures["depth"] = self._metres(self._depth)[..., None]
        if geoms:
            # Sites carry invisible region boxes that would cover objects in the id picture (and only there).
            self._option.sitegroup[:] = 0
            self._update_scene(data)
            self._option.sitegroup[:] = self._site_groups
            pictures["geoms"] = self._render_geom_ids()
        return pictures

    def close(self) -> None:
        """Free the GL objects. Without it the interpreter's exit prints EGL tracebacks."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def _update_scene(self, data: Any) -> None:
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )

    def _render_geom_ids(self) -> np.ndarray:
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
        flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        mujoco.mjr_readPixels(self._rgb, None, self._viewport, self._context)
        code = self._rgb.astype(np.int32)  # before the shift: uint8 * 256 overflows in NumPy 2
        segment = code[..., 0] | (code[..., 1] << 8) | (code[..., 2] << 16)
        table = np.full(self._scene.ngeom + 1, -1, np.int32)
        for i in range(self._scene.ngeom):
            geom = self._scene.geoms[i]
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                table[geom.segid + 1] = geom.objid
        segment[segment > self._scene.ngeom] = 0
        return table[segment]

    def _metres(self, buffer: np.ndarray) -> np.ndarray:
        """Reversed z-buffer (1 near, 0 far) -> metres along the optical axis; 0 where nothing is."""
        near = self._model.vis.map.znear * self._model.stat.extent
        far = self._model.vis.map.zfar * self._model.stat.extent
        metres = (near * far / (near + buffer.astype(np.float64) * (far - near))).astype(np.float32)
        metres[(buffer <= 0.0) | (metres > MAX_DEPTH_M)] = 0.0
        return metres


@contextmanager
def _displaced(data: Any, camera: int, displaced: Displacement | None) -> Iterator[None]:
    """Pictures of a camera that sits elsewhere; the dynamics read nothing of it."""
    if displaced is None:
        yield
        return
    place, axes = data.cam_xpos[camera].copy(), data.cam_xmat[camera].copy()
    frame = axes.reshape(3, 3)
    angle = float(np.linalg.norm(displaced.turn))
    quaternion, turn = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, np.array(displaced.turn) / (angle or 1.0), angle)
    mujoco.mju_quat2Mat(turn, quaternion)
    data.cam_xpos[camera] = place + frame @ np.array(displaced.offset)
    data.cam_xmat[camera] = (frame @ turn.reshape(3, 3)).ravel()
    try:
        yield
    finally:
        data.cam_xpos[camera], data.cam_xmat[camera] = place, axes
