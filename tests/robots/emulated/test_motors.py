"""The protocol of the STS3215, byte by byte; LeRobot's driver speaks it in test_emulated_so101."""

from __future__ import annotations

import pytest
from lerobot.motors.feetech.tables import MODEL_CONTROL_TABLE, MODEL_ENCODING_TABLE, MODEL_NUMBER_TABLE

from lerobot_robot_multismolvla.emulated.motors import (
    BROADCAST,
    SIGN_BITS,
    Bus,
    Instruction,
    Motor,
    Register,
)

LEROBOTS_NAMES = {
    Register.FIRMWARE: "Firmware_Major_Version",
    Register.MODEL: "Model_Number",
    Register.MIN_POSITION: "Min_Position_Limit",
    Register.MAX_POSITION: "Max_Position_Limit",
}


def packet(number: int, instruction: Instruction, *parameters: int) -> bytes:
    body = bytes([number, len(parameters) + 2, instruction, *parameters])
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


@pytest.fixture
def bus() -> Bus:
    return Bus([Motor(1, 1000, 3000), Motor(2, 0, 4095)])


def test_registers_are_where_lerobot_looks_for_them():
    table, signs = MODEL_CONTROL_TABLE["sts3215"], MODEL_ENCODING_TABLE["sts3215"]
    for register in Register:
        name = LEROBOTS_NAMES.get(register) or register.name.title().replace("Id", "ID")
        assert table[name][0] == register
        assert signs.get(name) == SIGN_BITS.get(register)


def test_ping_read_and_write(bus):
    assert bus.answer(packet(1, Instruction.PING)) == bytes.fromhex("ffff010200fc")  # of Feetech's manual
    assert bus.answer(packet(3, Instruction.PING)) == b""
    both = bus.answer(packet(BROADCAST, Instruction.PING))
    assert both == bytes.fromhex("ffff010200fc ffff020200fb")
    model = bus.answer(packet(2, Instruction.READ, Register.MODEL, 2))
    assert int.from_bytes(model[5:7], "little") == MODEL_NUMBER_TABLE["sts3215"]
    assert bus.answer(packet(2, Instruction.WRITE, Register.TORQUE_ENABLE, 1)) == bytes.fromhex(
        "ffff020200fb"
    )
    assert [motor.powered for motor in bus.motors.values()] == [False, True]


def test_sync_write_is_not_answered_and_sync_read_by_each(bus):
    goals = [1, *(2000).to_bytes(2, "little"), 2, *(3000).to_bytes(2, "little")]
    assert bus.answer(packet(BROADCAST, Instruction.SYNC_WRITE, Register.GOAL_POSITION, 2, *goals)) == b""
    assert [motor.goal for motor in bus.motors.values()] == [2000, 3000]
    read = bus.answer(packet(BROADCAST, Instruction.SYNC_READ, Register.GOAL_POSITION, 2, 2, 1))
    assert [int.from_bytes(read[i : i + 2], "little") for i in (5, 13)] == [3000, 2000]


def test_packets_come_in_pieces_with_noise_and_damage(bus):
    ping = packet(2, Instruction.PING)
    damaged = ping[:-1] + bytes([ping[-1] ^ 1])
    assert bus.answer(damaged) == b""
    assert bus.answer(b"\x00\xff" + damaged + ping[:3]) == b""
    assert bus.answer(ping[3:] + ping) == 2 * bytes.fromhex("ffff020200fb")


def test_a_goal_stays_within_the_limits_and_knows_the_homing_offset():
    motor = Motor(1, 1000, 3000)
    for goal, expected in ((7687, 3000), (-5, 1000), (2000, 2000)):
        motor.set_word(Register.GOAL_POSITION, goal)
        assert motor.goal == expected
    motor.set_word(Register.HOMING_OFFSET, -100)
    motor.show(1900, -7)
    assert motor.goal == 1900
    assert motor.word(Register.PRESENT_POSITION) == 2000
    assert motor.word(Register.PRESENT_VELOCITY) == -7


def test_a_motor_that_is_switched_on_stays_where_it_is():
    motor = Motor(1, 1000, 3000)
    motor.set_word(Register.GOAL_POSITION, 1200)
    motor.show(2500, 0)
    motor.write(Register.TORQUE_ENABLE, b"\x01")
    assert motor.goal == 2500
    motor.write(Register.GOAL_POSITION, (1200).to_bytes(2, "little"))
    motor.write(Register.TORQUE_ENABLE, b"\x01")
    assert motor.goal == 1200, "it was on already"
