"""Stage-1 distillation and the consistency objective as functions of tensors."""

from __future__ import annotations

import math

import pytest
import torch

from multismolvla.objectives.alignment import alignment_loss, consistency_loss


def tokens(seed: int, rows: int = 4, count: int = 6, dim: int = 16, offset: float = 0.0) -> torch.Tensor:
    return offset + torch.randn(rows, count, dim, generator=torch.Generator().manual_seed(seed))


def every(rows: int = 4) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_it_is_zero_at_equality():
    teacher = tokens(0, offset=3.0)
    loss, logs = alignment_loss(teacher.clone().requires_grad_(), teacher, every())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logs["align_cosine"] == pytest.approx(1)
    assert logs["align_norm"] == pytest.approx(0, abs=1e-6)
    assert logs["align_relation"] == pytest.approx(0, abs=1e-6)


def test_a_constant_token_gets_no_credit_for_its_high_plain_cosine():
    teacher = tokens(0, offset=3.0)  # all tokens point roughly the same way, as SigLIP's do
    mean = teacher.mean((0, 1)).expand_as(teacher)
    loss, logs = alignment_loss(mean, teacher, every())
    assert logs["align_plain_cosine"] > 0.9
    assert logs["align_plain_cosine"] == pytest.approx(logs["align_plain_cosine_of_mean_token"])
    assert logs["align_cosine"] == pytest.approx(0, abs=1e-3)
    assert loss > 1


def test_direction_norm_and_relations_are_weighed():
    teacher = tokens(0)
    louder = 2 * teacher
    base, logs = alignment_loss(louder, teacher, every(), norm_weight=0.0, relation_weight=0.0)
    heavy, _ = alignment_loss(louder, teacher, every(), norm_weight=2.0, relation_weight=0.0)
    assert logs["align_norm"] == pytest.approx(torch.log(torch.tensor(2.0)).item() ** 2, rel=1e-4)
    assert (heavy - base).item() == pytest.approx(2 * logs["align_norm"], rel=1e-4)
    shuffled = teacher.flip(1)  # right tokens in the wrong cells
    _, wrong = alignment_loss(shuffled, teacher, every())
    assert wrong["align_relation"] > 0.01
    assert wrong["align_cosine"] < 0.5


def test_masked_views_do_not_count():
    student, teacher = tokens(1).requires_grad_(), tokens(0)
    mask = torch.tensor([True, False, True, False])
    loss, _ = alignment_loss(student, teacher, mask)
    part, _ = alignment_loss(student[mask], teacher[mask], every(2))
    assert loss.item() == pytest.approx(part.item(), rel=1e-6)
    loss.backward()
    assert (student.grad.abs().sum((1, 2)) > 0).tolist() == mask.tolist()


def test_no_view_at_all_gives_zero_with_a_way_for_gradients():
    student = tokens(1).requires_grad_()
    loss, logs = alignment_loss(student, tokens(0), ~every())
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0
    assert all(math.isnan(value) for value in logs.values())


def test_the_teacher_gets_no_gradient():
    student, teacher = tokens(1).requires_grad_(), tokens(0).requires_grad_()
    alignment_loss(student, teacher, every())[0].backward()
    assert teacher.grad is None


def test_different_shapes_are_named_with_the_options_that_mend_them():
    with pytest.raises(
        ValueError, match=r"\(4, 6, 16\).*\(4, 9, 16\).*--policy.connector_grid.*connector_unshuffle"
    ):
        alignment_loss(tokens(0), tokens(0, count=9), every())


def test_descending_the_loss_finds_the_teacher():
    teacher, student = tokens(0, offset=1.0), tokens(1).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    before = alignment_loss(student, teacher, every())[1]["align_norm"]
    for _ in range(100):
        optimizer.zero_grad()
        loss, logs = alignment_loss(student, teacher, every())
        loss.backward()
        optimizer.step()
    assert logs["align_cosine"] > 0.9
    assert logs["align_norm"] < before


# ---------------------------------------------------------------- consistency


def test_consistency_is_the_mean_squared_distance_over_real_actions():
    clean = torch.zeros(2, 3, 4, requires_grad=True)
    dropped = torch.full((2, 3, 4), 2.0, requires_grad=True)
    weight = torch.ones(2, 3, 1)
    assert consistency_loss(dropped, clean, weight).item() == pytest.approx(4.0)
    weight[:, 1:] = 0
    far = dropped.detach().clone()
    far[:, 1:] = 1e3  # padded actions
    assert consistency_loss(far, clean, weight).item() == pytest.approx(4.0)
    consistency_loss(dropped, clean, weight).backward()
    assert clean.grad is None
    assert dropped.grad[:, 0].abs().sum() > 0
    assert dropped.grad[:, 1:].abs().sum() == 0


def test_consistency_without_real_actions_is_zero():
    assert consistency_loss(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 1)).item() == 0


def test_ranks_log_the_same_names_whatever_their_batch_holds():
    tokens = torch.randn(2, 3, 4)
    _, logs = alignment_loss(tokens, tokens + 1, torch.ones(2, dtype=torch.bool))
    _, nothing = alignment_loss(tokens, tokens + 1, torch.zeros(2, dtype=torch.bool))
    assert list(nothing) == list(logs)
