"""Both losses against the formulas written out token by token in double precision."""

import math
import warnings
from dataclasses import fields

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from puma_trl.step import loss_chunk
from puma_trl.step.loss_chunk import FusedPumaLoss
from puma_trl.step.losses import fused_puma_loss
from puma_trl.step.reference import puma_loss


VOCAB = 37
HIDDEN = 8
METRICS = [field.name for field in fields(FusedPumaLoss) if field.name != "loss"]
WEIGHTS = [(0.5, 0.1), (0.0, 1.0), (1.0, 0.7), (0.3, 0.0)]
TEMPERATURES = [0.5, 1.0, 4.0]


def reference_from_logits(student, teacher, labels, alpha_kl, lambda_kl, temp_kl, standardize_logits=False):
    sums = dict.fromkeys(("loss", *METRICS), 0.0)
    for z_s, z_t, label in zip(student, teacher, labels.tolist(), strict=True):
        ce = -torch.log(torch.softmax(z_s, 0)[label])
        p = torch.softmax(z_s, 0)
        values = {
            "ce": ce,
            "teacher_ce": -torch.log(torch.softmax(z_t, 0)[label]),
            "entropy": -(p * torch.log(p)).sum(),
            "correct": float(z_s.argmax() == label),
            "teacher_correct": float(z_t.argmax() == label),
            "num_tokens": 1.0,
        }
        z_s = z_s[: len(z_t)]
        if standardize_logits:
            z_s, z_t = (z_s - z_s.mean()) / (z_s.std() + 1e-6), (z_t - z_t.mean()) / (z_t.std() + 1e-6)
        p_s, p_t = torch.softmax(z_s / temp_kl, 0), torch.softmax(z_t / temp_kl, 0)
        values["forward_kl"] = (p_t * (torch.log(p_t) - torch.log(p_s))).sum()
        values["reverse_kl"] = (p_s * (torch.log(p_s) - torch.log(p_t))).sum()
        values["kl"] = temp_kl**2 * (alpha_kl * values["forward_kl"] + (1 - alpha_kl) * values["reverse_kl"])
        values["loss"] = lambda_kl * values["kl"] + (1 - lambda_kl) * ce
        sums = {name: sums[name] + values[name] for name in sums}
    return sums


def logits_of(hidden, weight, bias=None, logit_scale=1.0, softcap=None):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def reference(
    student_hidden,
    teacher_hidden,
    weight,
    labels,
    lm_head_bias=None,
    teacher_lm_head_weight=None,
    teacher_lm_head_bias=None,
    logit_scale=1.0,
    softcap=None,
    teacher_logit_scale=1.0,
    teacher_softcap=None,
    shared_vocab_size=None,
    num_items=None,
    **kwargs,
):
    teacher_transform = (teacher_logit_scale, teacher_softcap)
    if teacher_lm_head_weight is None:
        teacher_lm_head_weight, teacher_lm_head_bias = weight, lm_head_bias
        teacher_transform = (logit_scale, softcap)
    student = logits_of(student_hidden, weight, lm_head_bias, logit_scale, softcap)
    teacher = logits_of(teacher_hidden, teacher_lm_head_weight, teacher_lm_head_bias, *teacher_transform).detach()
    teacher = teacher[:, :shared_vocab_size]
    sums = reference_from_logits(student, teacher, labels, **kwargs)
    sums["loss"] = sums["loss"] / (num_items or labels.shape[0])
    return sums


def make_inputs(num_tokens=11, vocab_size=VOCAB, dtype=torch.float32, trained=True, seed=0):
    """Student's hidden states, teacher's hidden states, weight and labels."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_tokens, HIDDEN, generator=generator).to(dtype).requires_grad_()
    # far enough apart that the KL is not mostly the rounding error of the logits
    teacher = (torch.randn(num_tokens, HIDDEN, generator=generator) * 2).to(dtype)
    weight = (torch.randn(vocab_size, HIDDEN, generator=generator) * 0.5).to(dtype).requires_grad_(trained)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    labels[::2] = (student @ weight.T).argmax(-1)[::2]  # some are right
    return student, teacher, weight, labels


def make_bias(dtype=torch.float32, vocab_size=VOCAB, seed=1):
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def doubled(value):
    if torch.is_tensor(value) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def assert_close(actual, expected, tolerance):
    error = (actual.detach().double() - expected).norm() / max(expected.norm().item(), 1e-30)
    assert error < tolerance, f"relative error {error:.1e}"


def check_fused(inputs, tolerance, chunk_size=4, **kwargs):
    """Compares loss, metrics and all gradients with the reference on the same numbers in double precision."""
    output = fused_puma_loss(*inputs, chunk_size=chunk_size, **kwargs)
    output.loss.backward()
    inputs64 = [doubled(value) for value in inputs]
    kwargs64 = {name: doubled(value) for name, value in kwargs.items()}
    expected = reference(*inputs64, **kwargs64)
    expected["loss"].backward()
    assert_close(output.loss, expected["loss"].detach(), tolerance)
    for name in METRICS:
        assert not getattr(output, name).requires_grad
        assert_close(getattr(output, name), torch.as_tensor(expected[name]).detach().double(), tolerance)
    for value, value64 in zip((*inputs, *kwargs.values()), (*inputs64, *kwargs64.values()), strict=True):
        if torch.is_tensor(value) and value.requires_grad:
            assert value.grad.dtype == value.dtype
            assert_close(value.grad, value64.grad, tolerance)
    return output


class Watch(TorchDispatchMode):
    """Counts matrix products and keeps the number of entries of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.products = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        for value in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(value):
                self.largest = max(self.largest, value.numel())
        return result


class TestPumaLoss:
    @pytest.mark.parametrize("standardize_logits", [False, True])
    @pytest.mark.parametrize("temp_kl", TEMPERATURES)
    @pytest.mark.parametrize(("alpha_kl", "lambda_kl"), WEIGHTS)
    def test_equals_reference(self, alpha_kl, lambda_kl, temp_kl, standardize_logits):
        torch.manual_seed(0)
        student = torch.randn(9, VOCAB, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(9, VOCAB, dtype=torch.float64, requires_grad=True)
        labels = torch.randint(VOCAB, (9,))
        kwargs = {
            "alpha_kl": alpha_kl,
            "lambda_kl": lambda_kl,
            "temp_kl": temp_kl,
            "standardize_logits": standardize_logits,
        }
        output = puma_loss(student, teacher, labels, **kwargs, num_items=1)
        grad, teacher_grad = torch.autograd.grad(output.loss, (student, teacher), allow_unused=True)
        expected = reference_from_logits(student, teacher.detach(), labels, **kwargs)
        (expected_grad,) = torch.autograd.grad(expected["loss"], student)
        for name in ("loss", "kl", "forward_kl", "reverse_kl", "ce"):
            torch.testing.assert_close(getattr(output, name), expected[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)
        assert output.num_tokens == 9
        assert teacher_grad is None

    @pytest.mark.parametrize("num_items", [None, 1, 40, torch.tensor(0)])
    def test_both_losses_have_one_reduction_and_the_same_defaults(self, num_items):
        torch.manual_seed(0)
        student, teacher, weight = torch.randn(9, 6), torch.randn(9, 6), torch.randn(VOCAB, 6)
        labels = torch.randint(VOCAB, (9,))
        plain = puma_loss(student @ weight.T, teacher @ weight.T, labels, num_items=num_items)
        fused = fused_puma_loss(student, teacher, weight, labels, num_items=num_items)
        for name in ("loss", "kl", "forward_kl", "reverse_kl", "ce"):
            torch.testing.assert_close(getattr(plain, name), getattr(fused, name), rtol=1e-5, atol=1e-6)
        divisor = 9 if num_items is None else max(int(num_items), 1)
        torch.testing.assert_close(plain.loss, (0.1 * plain.kl + 0.9 * plain.ce) / divisor)

    @pytest.mark.parametrize(
        ("student", "teacher", "labels", "message"),
        [
            ((2, 5, 50), (2, 5, 50), (2, 5), r"both sides have \(N, V\)"),
            ((5, 50), (4, 50), (5,), r"have the shapes \(5, 50\) and \(4, 50\)"),
            ((5, 50), (5, 51), (5,), r"both sides have \(N, V\)"),
            ((5, 50), (5, 50), (4,), "`labels` has the shape"),
            ((5, 50), (5, 50), (5, 1), "`labels` has the shape"),
        ],
    )
    def test_shapes_are_checked(self, student, teacher, labels, message):
        with pytest.raises(ValueError, match=message):
            puma_loss(torch.randn(student), torch.randn(teacher), torch.zeros(labels, dtype=torch.long))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"lambda_kl": 1.1}, "`lambda_kl` is 1.1, but it must be between 0 and 1"),
            ({"alpha_kl": -0.1}, "`alpha_kl` is -0.1"),
            ({"alpha_kl": math.nan}, "`alpha_kl` is nan"),
            ({"temp_kl": 0.0}, "`temp_kl` is 0.0, but it must be above 0 and finite"),
            ({"temp_kl": math.inf}, "`temp_kl` is inf"),
            ({"labels": torch.ones(3)}, "`labels` has the dtype torch.float32, .* Give `labels.long"),
        ],
    )
    def test_numbers_are_checked(self, settings, message):
        settings = {"labels": torch.tensor([1, 0, 2])} | settings
        with pytest.raises(ValueError, match=message):
            puma_loss(torch.randn(3, VOCAB), torch.randn(3, VOCAB), **settings)
        with pytest.raises(ValueError, match=message):
            fused_puma_loss(torch.randn(3, 4), torch.randn(3, 4), torch.randn(VOCAB, 4), **settings)

    @pytest.mark.parametrize("label", [-100, -1, VOCAB])
    def test_labels_out_of_the_vocabulary(self, label):
        labels = torch.tensor([1, label, 2])
        with pytest.raises(ValueError, match=r"Leave out positions without an answer token \(-100\)"):
            puma_loss(torch.randn(3, VOCAB), torch.randn(3, VOCAB), labels)
        with pytest.raises(ValueError, match=r"Leave out positions without an answer token \(-100\)"):
            fused_puma_loss(torch.randn(3, 4), torch.randn(3, 4), torch.randn(VOCAB, 4), labels)

    @pytest.mark.parametrize("standardize_logits", [False, True])
    def test_gradcheck(self, standardize_logits):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
        labels = torch.randint(7, (4,))

        def losses(logits):
            settings = {"alpha_kl": 0.3, "lambda_kl": 0.6, "temp_kl": 2.0, "standardize_logits": standardize_logits}
            output = puma_loss(logits, teacher, labels, **settings)
            return output.loss, output.kl, output.forward_kl, output.reverse_kl, output.ce

        assert torch.autograd.gradcheck(losses, student.requires_grad_())

    @pytest.mark.parametrize("standardize_logits", [False, True])
    def test_entries_excluded_on_both_sides_count_nothing(self, standardize_logits):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
        labels = torch.randint(1, 7, (4,))
        settings = {"alpha_kl": 0.3, "lambda_kl": 0.6, "temp_kl": 2.0, "standardize_logits": standardize_logits}
        student[:, 0] = teacher[:, 0] = -math.inf
        student.requires_grad_()
        output = puma_loss(student, teacher, labels, **settings)
        output.loss.backward()
        short = student.detach()[:, 1:].clone().requires_grad_()
        expected = puma_loss(short, teacher[:, 1:], labels - 1, **settings)
        expected.loss.backward()
        for name in ("loss", "kl", "forward_kl", "reverse_kl", "ce"):
            torch.testing.assert_close(getattr(output, name), getattr(expected, name), rtol=1e-12, atol=0)
        torch.testing.assert_close(student.grad[:, 1:], short.grad, rtol=1e-10, atol=1e-14)
        assert torch.all(student.grad[:, 0] == 0)

    @pytest.mark.parametrize(
        ("excluded_by", "infinite", "finite", "alpha_kl"),
        [("student", "forward_kl", "reverse_kl", 0.0), ("teacher", "reverse_kl", "forward_kl", 1.0)],
    )
    def test_entry_excluded_on_one_side_makes_one_direction_infinite(self, excluded_by, infinite, finite, alpha_kl):
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
        labels = torch.randint(1, 7, (4,))
        (student if excluded_by == "student" else teacher)[:, 0] = -math.inf
        student.requires_grad_()
        output = puma_loss(student, teacher, labels, alpha_kl=0.5, lambda_kl=0.5, temp_kl=1.0)
        assert getattr(output, infinite) == output.kl == output.loss == math.inf
        assert getattr(output, finite).isfinite()
        # without weight, the infinite direction spoils neither value nor gradient
        output = puma_loss(student, teacher, labels, alpha_kl=alpha_kl, lambda_kl=0.5, temp_kl=1.0)
        output.loss.backward()
        assert output.loss.isfinite() and student.grad.isfinite().all()
        assert puma_loss(student, teacher, labels, alpha_kl=0.5, lambda_kl=0.0, temp_kl=1.0).loss.isfinite()

    def test_half_precision_is_computed_in_single(self):
        torch.manual_seed(0)
        student, teacher = (torch.randn(2, 4, 7) * 10).bfloat16()
        labels = torch.randint(7, (4,))
        settings = {"alpha_kl": 0.5, "lambda_kl": 0.5, "temp_kl": 1.0}
        output = puma_loss(student, teacher, labels, **settings)
        assert output.loss.dtype == torch.float32
        assert torch.equal(output.loss, puma_loss(student.float(), teacher.float(), labels, **settings).loss)

    @pytest.mark.parametrize("standardize_logits", [False, True])
    def test_equal_logits_have_finite_gradients(self, standardize_logits):
        student = torch.zeros(2, 7, requires_grad=True)
        settings = {"alpha_kl": 0.5, "lambda_kl": 0.5, "temp_kl": 1.0, "standardize_logits": standardize_logits}
        puma_loss(student, torch.randn(2, 7), torch.tensor([1, 2]), **settings).loss.backward()
        assert student.grad.isfinite().all()


SETTINGS = {"alpha_kl": 0.3, "lambda_kl": 0.6, "temp_kl": 2.0}


class TestFusedPumaLoss:
    @pytest.mark.parametrize("standardize_logits", [False, True])
    @pytest.mark.parametrize("temp_kl", TEMPERATURES)
    @pytest.mark.parametrize(("alpha_kl", "lambda_kl"), WEIGHTS)
    def test_equals_reference(self, alpha_kl, lambda_kl, temp_kl, standardize_logits):
        check_fused(
            make_inputs(),
            1e-6,
            alpha_kl=alpha_kl,
            lambda_kl=lambda_kl,
            temp_kl=temp_kl,
            standardize_logits=standardize_logits,
        )

    @pytest.mark.parametrize("standardize_logits", [False, True])
    @pytest.mark.parametrize("softcap", [None, 5.0])
    @pytest.mark.parametrize("logit_scale", [1.0, 1.5])
    @pytest.mark.parametrize("bias", [False, True])
    def test_heads(self, bias, logit_scale, softcap, standardize_logits):
        check_fused(
            make_inputs(),
            1e-6,
            **SETTINGS,
            lm_head_bias=make_bias() if bias else None,
            logit_scale=logit_scale,
            softcap=softcap,
            standardize_logits=standardize_logits,
        )

    def test_large_logits(self):
        """Of 150 and more, whose exponentials have no place in single precision."""
        check_fused(make_inputs(), 1e-5, **SETTINGS | {"temp_kl": 1.0}, logit_scale=40.0)

    @pytest.mark.parametrize("standardize_logits", [False, True])
    def test_equal_logits_have_finite_gradients(self, standardize_logits):
        _, teacher, weight, labels = make_inputs()
        student = torch.zeros(11, HIDDEN, requires_grad=True)
        fused_puma_loss(
            student, teacher, weight, labels, **SETTINGS, standardize_logits=standardize_logits
        ).loss.backward()
        assert student.grad.isfinite().all() and weight.grad.isfinite().all()

    @pytest.mark.parametrize("chunk_size", [1, 3, 11, 100, None])
    def test_chunk_sizes(self, chunk_size):
        check_fused(make_inputs(), 1e-6, chunk_size=chunk_size, **SETTINGS)

    @pytest.mark.parametrize("bias", [False, True])
    def test_teacher_with_own_head(self, bias):
        torch.manual_seed(3)
        check_fused(
            make_inputs(),
            1e-6,
            **SETTINGS,
            lm_head_bias=make_bias(),
            teacher_lm_head_weight=torch.randn(VOCAB, HIDDEN),
            teacher_lm_head_bias=torch.randn(VOCAB) if bias else None,
        )
        shared = make_inputs(trained=False)
        check_fused(
            shared, 1e-6, **SETTINGS, teacher_lm_head_weight=shared[2], teacher_lm_head_bias=make_bias(seed=2).detach()
        )

    @pytest.mark.parametrize("standardize_logits", [False, True])
    @pytest.mark.parametrize("rows", [VOCAB - 5, VOCAB, VOCAB + 5])
    def test_another_model_as_teacher(self, rows, standardize_logits):
        """Its head has another width and vocabulary, and a scale and a soft cap of its own."""
        torch.manual_seed(3)
        student, _, weight, labels = make_inputs()
        shared = min(rows, VOCAB) - 1
        teacher = {"teacher_lm_head_weight": torch.randn(rows, HIDDEN + 3), "teacher_lm_head_bias": torch.randn(rows)}
        teacher |= {"teacher_logit_scale": 0.5, "teacher_softcap": 4.0, "shared_vocab_size": shared}
        values = SETTINGS | {"lm_head_bias": make_bias(), "logit_scale": 1.5, "standardize_logits": standardize_logits}
        hidden = torch.randn(len(labels), HIDDEN + 3)
        output = check_fused((student, hidden, weight, labels.clamp(max=shared - 1)), 1e-6, **teacher, **values)
        # and what is read in the paper's words
        plain = puma_loss(
            logits_of(student, weight, values["lm_head_bias"], 1.5),
            logits_of(hidden, teacher["teacher_lm_head_weight"], teacher["teacher_lm_head_bias"], 0.5, 4.0),
            labels.clamp(max=shared - 1),
            **SETTINGS,
            standardize_logits=standardize_logits,
            shared_vocab_size=shared,
        )
        torch.testing.assert_close(output.loss, plain.loss)
        torch.testing.assert_close(output.kl, plain.kl)

    def test_the_largest_logit_outside_of_the_shared_vocabulary(self):
        student, teacher, weight, labels = make_inputs()
        with torch.no_grad():
            weight[-1] = 1000 * student[0] / student[0].square().sum()
        labels = labels.clamp(max=VOCAB - 2)
        own = {"teacher_lm_head_weight": weight.detach()[:-1].clone(), "shared_vocab_size": VOCAB - 1}
        output = fused_puma_loss(student, teacher, weight, labels, lambda_kl=1.0, **own)
        output.loss.backward()
        assert output.kl.isfinite() and student.grad.isfinite().all() and weight.grad.isfinite().all()

    @pytest.mark.parametrize("shared", [None, VOCAB])
    def test_vocabularies_of_different_sizes(self, shared):
        student, teacher, weight, labels = make_inputs()
        own = {"teacher_lm_head_weight": weight.detach()[:-1].clone(), "shared_vocab_size": shared}
        with pytest.raises(ValueError, match=f"has 37 entries, the teacher's 36, and `shared_vocab_size` is {shared}"):
            fused_puma_loss(student, teacher, weight, labels.clamp(max=VOCAB - 2), **own)
        with pytest.raises(ValueError, match="`labels` goes from .* to 36"):
            labels[0] = VOCAB - 1
            fused_puma_loss(student, teacher, weight, labels, **own | {"shared_vocab_size": VOCAB - 1})

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("temp_kl", TEMPERATURES)
    def test_half_precision(self, dtype, temp_kl):
        output = check_fused(
            make_inputs(dtype=dtype), 1e-2, alpha_kl=0.3, lambda_kl=0.6, temp_kl=temp_kl, lm_head_bias=make_bias(dtype)
        )
        assert output.loss.dtype == output.kl.dtype == torch.float32

    def test_half_precision_head_in_slices(self, monkeypatch):
        monkeypatch.setattr("puma_trl.step.losses.VOCAB_SLICE", 10)
        check_fused(make_inputs(dtype=torch.bfloat16), 1e-2, **SETTINGS)

    def test_precision_of_hidden_states_and_head_may_differ(self):
        student, teacher, weight, labels = make_inputs()
        inputs = student.detach().bfloat16().requires_grad_(), teacher.bfloat16(), weight, labels
        check_fused(inputs, 1e-2, **SETTINGS)

    @pytest.mark.parametrize("standardize_logits", [False, True])
    @pytest.mark.parametrize("softcap", [None, 5.0])
    def test_gradcheck(self, softcap, standardize_logits):
        student, teacher, weight, labels = make_inputs(num_tokens=3, vocab_size=7, dtype=torch.float64)
        bias = make_bias(torch.float64, vocab_size=7)

        # a teacher with a head of its own, which finite differences do not move
        own_head = {"teacher_lm_head_weight": weight.detach().clone(), "teacher_lm_head_bias": bias.detach().clone()}

        def loss(student, weight, bias):
            return fused_puma_loss(
                student,
                teacher,
                weight,
                labels,
                **SETTINGS,
                **own_head,
                lm_head_bias=bias,
                logit_scale=0.7,
                softcap=softcap,
                chunk_size=2,
                standardize_logits=standardize_logits,
            ).loss

        assert torch.autograd.gradcheck(loss, (student, weight, bias))

    @pytest.mark.parametrize("num_items", [50, torch.tensor(50), torch.tensor(50.0)])
    def test_num_items(self, num_items):
        check_fused(make_inputs(), 1e-6, **SETTINGS, num_items=num_items)

    def test_one_token(self):
        check_fused(make_inputs(num_tokens=1), 1e-6, **SETTINGS)

    @pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0), torch.tensor(5)])
    def test_no_token_gives_an_attached_zero(self, num_items):
        student, teacher, weight, labels = make_inputs(num_tokens=0)
        bias = make_bias()
        output = fused_puma_loss(student, teacher, weight, labels, **SETTINGS, lm_head_bias=bias, num_items=num_items)
        assert output.loss == 0 and output.num_tokens == 0
        output.loss.backward()
        assert student.grad.shape == (0, HIDDEN)
        assert torch.all(weight.grad == 0) and weight.grad.shape == weight.shape
        assert torch.all(bias.grad == 0) and bias.grad.shape == bias.shape

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_autocast(self, dtype):
        inputs = make_inputs(dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = check_fused(inputs, 1e-6 if dtype == torch.float32 else 1e-2, **SETTINGS)
        assert output.loss.dtype == torch.float32

    @pytest.mark.parametrize("factor", [1024.0, 0.0])
    def test_scaled_and_repeated_backward(self, factor):
        student, teacher, weight, labels = make_inputs()
        inputs = (student, weight)
        loss = fused_puma_loss(student, teacher, weight, labels, **SETTINGS, chunk_size=4).loss
        once = torch.autograd.grad(loss, inputs, retain_graph=True)
        scaled = torch.autograd.grad(loss * factor, inputs, retain_graph=True)
        again = torch.autograd.grad(loss, inputs)
        for grad, grad_scaled, grad_again in zip(once, scaled, again, strict=True):
            torch.testing.assert_close(grad_scaled, grad * factor)
            assert torch.equal(grad_again, grad)

    def test_accumulated_micro_batches_equal_one_batch(self):
        student, teacher, weight, labels = make_inputs()
        fused_puma_loss(student, teacher, weight, labels, **SETTINGS).loss.backward()
        parts = student.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
        for rows in (slice(0, 3), slice(3, 11)):
            loss = fused_puma_loss(
                parts[0][rows], teacher[rows], parts[1], labels[rows], **SETTINGS, num_items=11
            ).loss
            loss.backward()
        torch.testing.assert_close(parts[0].grad, student.grad)
        torch.testing.assert_close(parts[1].grad, weight.grad)

    def test_tied_weight(self):
        student, teacher, weight, labels = make_inputs()
        tokens = torch.arange(labels.shape[0])
        fused_puma_loss(student + weight[tokens], teacher, weight, labels, **SETTINGS).loss.backward()
        student64, teacher64, weight64 = map(doubled, (student, teacher, weight))
        reference(student64 + weight64[tokens], teacher64, weight64, labels, **SETTINGS)["loss"].backward()
        assert_close(weight.grad, weight64.grad, 1e-6)
        assert_close(student.grad, student64.grad, 1e-6)

    @pytest.mark.parametrize(
        ("trained", "products"), [("both", 3), ("hidden", 2), ("weight", 2), ("bias", 1), ("none", 1), ("no_grad", 1)]
    )
    def test_only_needed_products_run(self, trained, products):
        student, teacher, weight, labels = make_inputs()
        bias = make_bias()
        student.requires_grad_(trained in ("both", "hidden", "no_grad"))
        weight.requires_grad_(trained in ("both", "weight", "no_grad"))
        bias.requires_grad_(trained == "bias")
        options = SETTINGS | {"lm_head_bias": bias, "shared_vocab_size": VOCAB}  # as the trainer gives it
        with torch.set_grad_enabled(trained != "no_grad"), Watch() as watch:
            output = fused_puma_loss(student, teacher, weight, labels, **options)
        assert watch.products == products  # of one chunk; the two projections are one product
        assert output.loss.requires_grad == (trained not in ("none", "no_grad"))
        if output.loss.requires_grad:
            with Watch() as watch:
                output.loss.backward()
            assert watch.products == 0
        for value, names in ((student, ("both", "hidden")), (weight, ("both", "weight")), (bias, ("bias",))):
            assert (value.grad is not None) == (trained in names)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_logits_of_one_chunk_at_a_time(self, dtype):
        inputs = make_inputs(num_tokens=40, vocab_size=64, dtype=dtype)
        with Watch() as watch:
            fused_puma_loss(*inputs, **SETTINGS, chunk_size=4).loss.backward()
        assert watch.largest == 2 * 4 * 64  # both sides of a chunk; the head has 64 * 8 entries too

    @pytest.mark.parametrize("num_tokens", [50, 1])  # 32 in round numbers, and at least
    def test_automatic_chunks_fill_the_memory_budget(self, monkeypatch, num_tokens):
        monkeypatch.setattr("puma_trl.step.losses.CHUNK_MEMORY", 2 * 64 * 4 * num_tokens)
        inputs = make_inputs(num_tokens=65, vocab_size=64)
        with Watch() as watch:
            fused_puma_loss(*inputs, **SETTINGS).loss.backward()
        assert watch.largest == 2 * 22 * 64  # three equal chunks rather than 32, 32 and 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"teacher_hidden": torch.zeros(10, HIDDEN)}, "11 answer positions, the teacher 10"),
            ({"labels": torch.zeros(12, dtype=torch.long)}, "`labels` 12"),
            ({"teacher_lm_head_weight": torch.zeros(VOCAB + 1, HIDDEN)}, "37 entries, the teacher's 38"),
            ({"chunk_size": 0}, "`chunk_size` is 0"),
        ],
    )
    def test_wrong_arguments(self, change, message):
        names = ("student_hidden", "teacher_hidden", "lm_head_weight", "labels")
        with pytest.raises(ValueError, match=message):
            fused_puma_loss(**dict(zip(names, make_inputs(), strict=True)) | SETTINGS | change)

    def test_broken_compiler_warns_once_and_falls_back(self, monkeypatch):
        monkeypatch.setattr(loss_chunk, "COMPILE_MIN_VOCAB", 2)
        monkeypatch.setattr(loss_chunk, "_compiler_works", True)
        torch._dynamo.reset()
        with (
            torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            check_fused(make_inputs(), 1e-6, **SETTINGS)
            check_fused(make_inputs(), 1e-6, **SETTINGS)
        assert ["loss is computed eagerly" in str(warning.message) for warning in caught].count(True) == 1

    def test_a_kernel_that_cannot_be_launched_warns_once_and_falls_back(self, monkeypatch):
        """As Triton's first launch without a C compiler, which is an error of no class of its own."""

        def launch(*_):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        monkeypatch.setattr(loss_chunk, "COMPILE_MIN_VOCAB", 2)
        monkeypatch.setattr(loss_chunk, "_compiler_works", True)
        monkeypatch.setattr(loss_chunk, "_compiled_chunk_step", launch)
        with pytest.warns(UserWarning, match="eagerly.*Failed to find C compiler") as caught:
            check_fused(make_inputs(), 1e-6, **SETTINGS)
            check_fused(make_inputs(), 1e-6, **SETTINGS)
        assert len(caught) == 1

    def test_want_of_memory_is_not_taken_for_a_broken_compiler(self, monkeypatch):
        def launch(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(loss_chunk, "COMPILE_MIN_VOCAB", 2)
        monkeypatch.setattr(loss_chunk, "_compiler_works", True)
        monkeypatch.setattr(loss_chunk, "_compiled_chunk_step", launch)
        with pytest.raises(torch.OutOfMemoryError):
            check_fused(make_inputs(), 1e-6, **SETTINGS)
        assert loss_chunk._compiler_works

    @pytest.mark.slow
    def test_compiled(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        vocab_size = loss_chunk.COMPILE_MIN_VOCAB + 1
        for num_tokens in (11, 5, 1, 7):  # chunks of 4, 3 and 1 tokens
            # summing over so many entries in single precision has an error of about 2e-6 by itself, in any loss
            check_fused(make_inputs(num_tokens, vocab_size), 5e-6, **SETTINGS)
        assert loss_chunk._compiler_works
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        with torch.no_grad():
            fused_puma_loss(*make_inputs(11, vocab_size), **SETTINGS)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("transform", [{"softcap": 5.0}, {"logit_scale": 1.5}, {"standardize_logits": True}])
    def test_compiled_transforms(self, transform):
        torch._dynamo.reset()
        inputs = make_inputs(11, loss_chunk.COMPILE_MIN_VOCAB + 1, dtype=torch.float64)
        check_fused(inputs, 1e-10, **SETTINGS, **transform)
        assert loss_chunk._compiler_works
