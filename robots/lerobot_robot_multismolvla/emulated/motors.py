"""A bus of Feetech STS3215 motors: their registers, and the packets with which they are read and written.

Written after Feetech's memory table of the STS series and its communication protocol: a packet is ``FF FF id
length instruction parameters checksum``, and words are sent low byte first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

BROADCAST = 0xFE
TICKS = 4096  # of one turn
_HEADER = b"\xff\xff"
_SIZE = 128  # bytes of a motor's table
_MODEL_STS3215 = 777
_FIRMWARE = (3, 10)


class Register(IntEnum):
    """Addresses of what the emulated motors act on or tell; all others only keep what is written."""

    FIRMWARE = 0  # two bytes: major, minor
    MODEL = 3
    ID = 5
    MIN_POSITION = 9
    MAX_POSITION = 11
    HOMING_OFFSET = 31
    TORQUE_ENABLE = 40
    GOAL_POSITION = 42
    PRESENT_POSITION = 56
    PRESENT_VELOCITY = 58
    PRESENT_VOLTAGE = 62  # 0.1 V
    PRESENT_TEMPERATURE = 63  # degrees Celsius
    MOVING = 66


class Instruction(IntEnum):
    """What a packet asks for."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


#: Registers of signed words -> the bit that says negative; the other bits are the magnitude.
SIGN_BITS = {
    Register.HOMING_OFFSET: 11,
    Register.GOAL_POSITION: 15,
    Register.PRESENT_POSITION: 15,
    Register.PRESENT_VELOCITY: 15,
}


@dataclass
class Motor:
    """One motor's table.

    Args:
        number: its id on the bus.
        range_min: lowest position it lets itself be sent to, in ticks.
        range_max: highest.
    """

    number: int
    range_min: int
    range_max: int
    table: bytearray = field(default_factory=lambda: bytearray(_SIZE), repr=False)

    def __post_init__(self) -> None:
        self.table[Register.FIRMWARE : Register.FIRMWARE + 2] = bytes(_FIRMWARE)
        self.table[Register.ID] = self.number
        self.table[Register.PRESENT_VOLTAGE], self.table[Register.PRESENT_TEMPERATURE] = 74, 30
        self.set_word(Register.MODEL, _MODEL_STS3215)
        self.set_word(Register.MIN_POSITION, self.range_min)
        self.set_word(Register.MAX_POSITION, self.range_max)

    @property
    def powered(self) -> bool:
        """Whether it holds its position."""
        return self.table[Register.TORQUE_ENABLE] != 0

    @property
    def goal(self) -> int:
        """Where it is sent [ticks of its encoder]: within its limits, without its homing offset."""
        low, high = self.word(Register.MIN_POSITION), self.word(Register.MAX_POSITION)
        return min(max(self.word(Register.GOAL_POSITION), low), high) + self.word(Register.HOMING_OFFSET)

    def show(self, position: int, velocity: int) -> None:
        """Set what it measures: ticks of its encoder, and ticks per second."""
        self.set_word(Register.PRESENT_POSITION, (position - self.word(Register.HOMING_OFFSET)) % TICKS)
        self.set_word(Register.PRESENT_VELOCITY, velocity)
        self.table[Register.MOVING] = velocity != 0

    def word(self, register: Register) -> int:
        """Value of a register of two bytes."""
        value = int.from_bytes(self.table[register : register + 2], "little")
        sign = 1 << SIGN_BITS.get(register, 16)
        return -(value & ~sign) if value & sign else value

    def set_word(self, register: Register, value: int) -> None:
        """Set a register of two bytes."""
        sign = 1 << SIGN_BITS[register] if value < 0 else 0
        self.table[register : register + 2] = (abs(value) | sign).to_bytes(2, "little")

    def read(self, address: int, length: int) -> bytes:
        """What a packet asks for."""
        return bytes(self.table[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        """Take what a packet writes. A motor that is switched on stays where it is until it gets a goal."""
        was_powered = self.powered
        self.table[address : address + len(data)] = data
        if self.powered and not was_powered:
            self.set_word(Register.GOAL_POSITION, self.word(Register.PRESENT_POSITION))


class Bus:
    """Answers packets for its motors.

    Args:
        motors: the motors, in the order in which they answer what is sent to all.
    """

    def __init__(self, motors: list[Motor]) -> None:
        self.motors = {motor.number: motor for motor in motors}
        self._received = bytearray()

    def answer(self, received: bytes) -> bytes:
        """What the motors send back to these bytes; packets may arrive in pieces and with noise between."""
        self._received += received
        return b"".join(self._perform(*packet) for packet in self._packets())

    def _packets(self) -> Iterator[tuple[int, int, bytes]]:
        """(id, instruction, parameters) of every whole packet whose checksum is right."""
        buffer = self._received
        while True:
            start = buffer.find(_HEADER)
            if start < 0:  # the last byte may be half a header
                del buffer[:-1]
                return
            del buffer[:start]
            if len(buffer) < 4 or len(buffer) < 4 + buffer[3]:
                return
            end = 4 + buffer[3]
            body, checksum = bytes(buffer[2 : end - 1]), buffer[end - 1]
            if len(body) < 3 or _checksum(body) != checksum:
                del buffer[:1]  # not a packet: the next one may begin inside it
                continue
            del buffer[:end]
            yield body[0], body[2], body[3:]

    def _perform(self, number: int, instruction: int, parameters: bytes) -> bytes:
        addressed = list(self.motors.values()) if number == BROADCAST else [self.motors.get(number)]
        if instruction == Instruction.PING:
            return b"".join(_status(motor.number) for motor in addressed if motor)
        if instruction == Instruction.SYNC_READ:
            address, length = parameters[:2]
            asked = [self.motors[i] for i in parameters[2:] if i in self.motors]
            return b"".join(_status(m.number, m.read(address, length)) for m in asked)
        if instruction == Instruction.SYNC_WRITE:  # nobody answers
            address, length = parameters[:2]
            for place in range(2, len(parameters), 1 + length):
                target = self.motors.get(parameters[place])
                if target:
                    target.write(address, parameters[place + 1 : place + 1 + length])
            return b""
        motor = self.motors.get(number)
        if motor is None:
            return b""
        if instruction == Instruction.READ:
            address, length = parameters
            return _status(number, motor.read(address, length))
        if instruction == Instruction.WRITE:
            motor.write(parameters[0], parameters[1:])
            return _status(number)
        return b""


def _status(number: int, data: bytes = b"") -> bytes:
    """A motor's answer, without an error."""
    body = bytes([number, len(data) + 2, 0]) + data
    return _HEADER + body + bytes([_checksum(body)])


def _checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF
