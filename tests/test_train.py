"""CB 12's loop: resumed = never stopped, whatever is killed when; bad files are refused; looking changes nothing."""

import itertools
import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from llmscratch.basis import train
from llmscratch.basis.train import (
    CheckpointError,
    History,
    evaluate,
    fit,
    load_checkpoint,
    looking,
    save_checkpoint,
    to_device,
    train_step,
)

EPOCHS = 5


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loss_fn(model, batch):
    x, t = batch
    return F.cross_entropy(model(x), t)


def new_run(optimizer="AdamW", scheduler=None, patience=None, own_generator=True, seed=0):
    """The arguments of fit for a small run with dropout and batch norm, everything seeded."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    settings = {"momentum": 0.9, "nesterov": True} if optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **settings)
    x, t = points(100)
    loader = DataLoader(
        TensorDataset(x[:70], t[:70]), 16, shuffle=True,
        generator=torch.Generator().manual_seed(seed + 1) if own_generator else None,
    )  # fmt: skip
    return {
        "model": model, "batches": loader, "optimizer": optimizer, "loss_fn": loss_fn, "epochs": EPOCHS,
        "scheduler": scheduler(optimizer) if scheduler else None, "val_batches": [(x[70:], t[70:])],
        "patience": patience, "progress": False,
    }  # fmt: skip


def state(run):
    """Everything that a run has learnt, flat, for comparison."""
    inside = run["optimizer"].state_dict()
    found = {f"model/{name}": t for name, t in run["model"].state_dict().items()}
    for i, values in inside["state"].items():
        found |= {f"optimizer/{i}/{key}": value for key, value in values.items()}
    return found, inside["param_groups"], run["scheduler"].state_dict() if run["scheduler"] else None


def assert_equal(ours, theirs):
    (mine, my_groups, my_schedule), (other, groups, schedule) = state(ours), state(theirs)
    assert mine.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(mine[name], value) if isinstance(value, torch.Tensor) else mine[name] == value, name
    assert json.dumps(my_groups) == json.dumps(groups)  # a tuple comes back as a list
    assert json.dumps(my_schedule) == json.dumps(schedule)  # a Counter comes back as a dict


class Killed(BaseException):
    pass


def killed_at(step, inner=loss_fn):
    """A loss_fn that raises Killed in the given training step, counted from 1."""
    count = itertools.count(1)

    def loss(model, batch):
        if model.training and next(count) == step:
            raise Killed
        return inner(model, batch)

    return loss


SCHEDULES = {
    "none": None,
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=25),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=25),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, T_max=20)], milestones=[5]
    ),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [7, 17]),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.05, step_size_up=4, cycle_momentum=False),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, T_mult=2),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.MultiStepLR(o, [12, 17]), lr_scheduler.ExponentialLR(o, 0.99)]
    ),
}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam", "Adagrad"])
def test_resumed_is_never_stopped_for_every_optimizer(tmp_path, optimizer):
    through = new_run(optimizer)
    wanted = fit(**through)
    for step in (6, 13):  # in the second and third epoch of five steps each
        file = tmp_path / f"{step}.safetensors"
        with pytest.raises(Killed):
            fit(**new_run(optimizer) | {"loss_fn": killed_at(step)}, checkpoint=file)
        resumed = new_run(optimizer)
        torch.rand(7)  # another process has other global random numbers
        assert fit(**resumed, checkpoint=file) == wanted
        assert_equal(resumed, through)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_resumed_is_never_stopped_for_every_schedule(tmp_path, schedule, own_generator):
    options = {"scheduler": SCHEDULES[schedule], "own_generator": own_generator, "patience": 10}
    through = new_run(**options)
    wanted = fit(**through, clip=0.5)
    with pytest.raises(Killed):
        fit(**new_run(**options) | {"loss_fn": killed_at(14)}, clip=0.5, checkpoint=tmp_path / "run")
    resumed = new_run(**options)
    torch.manual_seed(99)
    assert fit(**resumed, clip=0.5, checkpoint=tmp_path / "run") == wanted
    assert_equal(resumed, through)
    assert os.listdir(tmp_path) == ["run"]


PROGRAM = """
    import sys, time
    import torch
    torch.set_num_threads(1)
    from tests.test_train import fit, loss_fn, new_run, state, SCHEDULES

    def slow(model, batch):
        print("step", flush=True)
        time.sleep(0.004)
        return loss_fn(model, batch)

    run = new_run(scheduler=SCHEDULES["cosine"])
    history = fit(**run | {"loss_fn": slow, "epochs": 12}, checkpoint=sys.argv[1])
    print("done", flush=True)
"""


def test_a_process_killed_again_and_again_ends_where_one_that_was_not_ends(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        through = new_run(scheduler=SCHEDULES["cosine"])
        wanted = fit(**through | {"epochs": 12})
        file = tmp_path / "run.safetensors"
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.path.join(root, "tests")])}
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(file)]
        for lines in (9, 23):  # kill it after so many steps and looks, wherever it then is
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            seen = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            child.wait()
            child.stdout.close()
            assert seen == ["step\n"] * lines
        notes, _ = load_checkpoint(file, new_run()["model"])
        assert 2 <= notes["history"]["epochs"] < 12
        resumed = new_run(scheduler=SCHEDULES["cosine"])
        assert fit(**resumed | {"epochs": 12}, checkpoint=file) == wanted
        assert_equal(resumed, through)
    finally:
        torch.set_num_threads(threads)


def test_a_run_can_be_made_longer(tmp_path):
    fit(**new_run() | {"epochs": 2}, checkpoint=tmp_path / "run")
    longer, through = new_run(), None
    history = fit(**longer, checkpoint=tmp_path / "run")
    through = new_run()
    assert fit(**through) == history
    assert_equal(longer, through)
    again = new_run()
    assert fit(**again, checkpoint=tmp_path / "run") == history  # nothing left to do
    assert_equal(again, through)


def test_looking_changes_nothing():
    quiet = fit(**new_run() | {"val_batches": None})
    x, t = points(100)
    shuffled = DataLoader(TensorDataset(x[70:], t[70:]), 7, shuffle=True)  # draws from the global random numbers
    watched = fit(**new_run() | {"val_batches": shuffled}, after_epoch=lambda history: torch.rand(100))
    assert watched.train_loss == quiet.train_loss
    assert len(watched.val_loss) == EPOCHS


def test_looking_restores_each_module_and_the_random_numbers_even_after_an_error():
    model = new_run()["model"]
    model[1].eval()  # frozen on purpose
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with pytest.raises(Killed), looking(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        raise Killed
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_evaluate_is_the_mean_over_examples_for_any_split(sizes):
    model = new_run()["model"]
    x, t = points(sum(sizes), seed=3)
    with looking(model):
        wanted = loss_fn(model, (x, t)).item()
    for batches in (list(zip(x.split(sizes), t.split(sizes), strict=True)), [{"x": x, "t": t}]):
        take = loss_fn if isinstance(batches[0], tuple) else lambda m, b: loss_fn(m, (b["x"], b["t"]))
        assert evaluate(model, batches, take) == pytest.approx(wanted, rel=1e-5)


def test_batches_of_any_nesting_move_and_count():
    x = torch.zeros(3, 2)
    moved = to_device({"a": (x, [x]), "b": "text"}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["b"] == "text"
    for batch in (x, [x], (x, None), {"a": [x]}):
        assert train._batch_size(batch) == 3
    for batch in ([], {}, ["text"], torch.tensor(1.0), None):
        with pytest.raises(ValueError, match="a batch must begin with a tensor"):
            train._batch_size(batch)


def test_early_stopping_returns_the_best_weights_and_resumes_as_stopped(tmp_path):
    run = new_run(patience=2) | {"epochs": 200}
    seen = {}
    history = fit(
        **run, checkpoint=tmp_path / "run",
        after_epoch=lambda h: seen.update({h.epochs: {k: v.clone() for k, v in run["model"].state_dict().items()}}),
    )  # fmt: skip
    assert history.stopped
    assert history.epochs == history.best_epoch + 2 < 200
    assert history.val_loss[history.best_epoch - 1] == min(history.val_loss)
    for name, tensor in run["model"].state_dict().items():
        assert torch.equal(tensor, seen[history.best_epoch][name])
    again = new_run(patience=2) | {"epochs": 200}
    assert fit(**again, checkpoint=tmp_path / "run") == history
    for name, tensor in again["model"].state_dict().items():
        assert torch.equal(tensor, run["model"].state_dict()[name])
    _, best = load_checkpoint(tmp_path / "run", new_run()["model"])
    assert torch.equal(best["0.weight"], run["model"][0].weight)


class Tied(nn.Module):
    """Shared weights, a scalar, a bfloat16, an empty and a boolean tensor, and a weight that is not contiguous."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.randn(()))
        self.small = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.turned = nn.Parameter(torch.randn(3, 2).T)
        self.register_buffer("mask", torch.rand(3, 3) > 0.5)
        self.register_buffer("nothing", torch.empty(0, 2))
        self.register_buffer("scratch", torch.rand(2), persistent=False)


def test_tied_weights_and_odd_tensors_come_back(tmp_path):
    saved, loaded = Tied(), Tied()
    save_checkpoint(tmp_path / "tied", saved, best=saved.state_dict(), notes={"step": 7})
    notes, best = load_checkpoint(tmp_path / "tied", loaded)
    assert notes == {"step": 7}
    assert best.keys() == saved.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert loaded.head.weight is loaded.embed.weight


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint."""
    file = tmp_path_factory.mktemp("saved") / "small"
    save_checkpoint(file, nn.Linear(3, 2), notes={"epoch": 1})
    return file


def refused(folder, data):
    """The message with which load_checkpoint refuses the bytes; the model must stay as it was."""
    file, model = folder / "bad", nn.Linear(3, 2)
    file.write_bytes(data)
    before = model.weight.clone()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(file, model)
    assert torch.equal(model.weight, before)
    assert str(file) in str(error.value)
    return str(error.value)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused_with_its_length(tmp_path, saved, share):
    whole = saved.read_bytes()
    cut = int(share * len(whole))
    message = refused(tmp_path, whole[:cut])
    assert f"truncated or damaged ({cut:,} bytes): " in message


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_flipped_bit_is_refused(tmp_path, saved, share, bit):
    data = bytearray(saved.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    assert "damaged" in refused(tmp_path, bytes(data))


def test_other_files_are_refused(tmp_path):
    assert "truncated or damaged" in refused(tmp_path, b"")
    assert "truncated or damaged" in refused(tmp_path, b"no checkpoint, but a text of some length\n" * 100)
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain")
    assert "or not by save_checkpoint" in refused(tmp_path, (tmp_path / "plain").read_bytes())
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing", nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run | {"model": nn.Linear(6, 2)}, r"model/weight is absent in the file, expected \(2, 6\)"),
        (lambda run: run | {"model": run["model"].double()}, "torch.float32 in the file, expected .*torch.float64"),
        (
            lambda run: run | {"optimizer": torch.optim.SGD(run["model"].parameters())},
            "optimizer is AdamW in the file, expected SGD",
        ),
        (
            lambda run: run | {"optimizer": torch.optim.AdamW(run["model"][0].parameters())},
            r"trained is .*'4.bias'\]\] in the file, expected \[\['0.weight', '0.bias'\]\]",
        ),
        (lambda run: run | {"scheduler": SCHEDULES["lambda"](run["optimizer"])}, "scheduler is none in the file"),
        (lambda run: run | {"generators": [torch.Generator()]}, "number of generators is 1 in the file, expected 2"),
        (lambda run: run | {"batches": new_run(seed=5)["batches"]}, r"seeds is \[1\] in the file, expected \[6\]"),
        (lambda run: run | {"batches": list(run["batches"])[:2]}, "steps an epoch is 5 in the file, expected 2"),
        (lambda run: run | {"patience": 3}, "best kept is false in the file, expected true"),
        (lambda run: run | {"clip": 0.5}, "clip is null in the file, expected 0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(tmp_path, change, message):
    fit(**new_run() | {"epochs": 1}, checkpoint=tmp_path / "run")
    run = change(new_run())
    before, random = [p.clone() for p in run["model"].parameters()], torch.get_rng_state()
    with pytest.raises(CheckpointError, match=message):
        fit(**run, checkpoint=tmp_path / "run")
    assert all(torch.equal(p, q) for p, q in zip(run["model"].parameters(), before, strict=True))
    assert not run["optimizer"].state_dict()["state"]
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_the_next_one_succeeds(tmp_path, monkeypatch, broken):
    file = tmp_path / "run"
    save_checkpoint(file, nn.Linear(2, 2))
    old = file.read_bytes()

    def fails(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, broken, fails)
        save_checkpoint(file, nn.Linear(2, 2))
    assert file.read_bytes() == old
    save_checkpoint(file, nn.Linear(2, 2))
    assert file.read_bytes() != old
    assert os.listdir(tmp_path) == ["run"]


def test_loading_for_use_leaves_the_random_numbers_alone(tmp_path):
    save_checkpoint(tmp_path / "run", nn.Linear(2, 2))
    model, random = nn.Linear(2, 2), torch.get_rng_state()
    load_checkpoint(tmp_path / "run", model)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt():
    run = new_run()
    before = run["model"][0].weight.clone()
    with pytest.raises(FloatingPointError, match="loss nan or a gradient not finite: look at the batch"):
        fit(**run | {"loss_fn": lambda model, batch: loss_fn(model, batch) * math.nan})
    assert torch.equal(run["model"][0].weight, before)


class RootAtZero(torch.autograd.Function):
    """The loss as it is, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, RootAtZero.apply])
def test_what_is_not_finite_leaves_parameters_and_buffers_and_the_checkpoint(tmp_path, spoil):
    fit(**new_run() | {"epochs": 1}, checkpoint=tmp_path / "run")
    good = (tmp_path / "run").read_bytes()
    run, steps, before = new_run(), itertools.count(6), {}

    def loss(model, batch):
        bad = model.training and next(steps) == 10  # the last step of the second epoch
        if bad:
            before.update({name: t.clone() for name, t in model.state_dict().items()})
        value = loss_fn(model, [batch[0] * math.nan, batch[1]] if bad else batch)
        return spoil(loss_fn(model, batch) if bad and value.isnan() else value) if bad else value

    with pytest.raises(FloatingPointError, match="a gradient not finite"):
        fit(**run | {"loss_fn": loss}, checkpoint=tmp_path / "run")
    assert before
    for name, tensor in run["model"].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert (tmp_path / "run").read_bytes() == good


def test_weights_that_the_last_step_spoilt_do_not_overwrite_the_checkpoint(tmp_path):
    fit(**new_run("SGD") | {"epochs": 1}, checkpoint=tmp_path / "run")
    good, run = (tmp_path / "run").read_bytes(), new_run("SGD")

    def too_far(optimizer, *_):
        if next(steps) == 10:
            run["model"][0].weight.data.fill_(math.inf)

    steps = itertools.count(6)
    run["optimizer"].register_step_post_hook(too_far)
    with pytest.raises(FloatingPointError, match="the last step made weights infinite"):
        fit(**run, checkpoint=tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == good


def test_frozen_parts_stay_frozen_and_a_model_in_eval_mode_trains():
    run = new_run()
    run["model"][1].eval()
    before = run["model"][1].running_mean.clone()
    fit(**run)
    assert torch.equal(run["model"][1].running_mean, before)
    run = new_run()
    run["model"].eval()
    assert fit(**run) == fit(**new_run())


def test_only_what_is_trained_is_clipped():
    run = new_run("SGD")
    head = run["model"][4]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(5):
        torch.manual_seed(1)
        train_step(run["model"], points(20), optimizer=optimizer, loss_fn=loss_fn, clip=1e-3)
        assert math.hypot(*(p.grad.norm().item() for p in head.parameters())) == pytest.approx(1e-3, rel=1e-2)
    for clip in (0, -1.0):
        with pytest.raises(ValueError, match="clip must be a norm > 0"):
            train_step(run["model"], points(20), optimizer=optimizer, loss_fn=loss_fn, clip=clip)


@pytest.mark.parametrize("which", ["sampler", "validation", "shared"])
def test_every_generator_of_the_loaders_is_saved_or_put_back(tmp_path, which):
    def run(look=True):
        found, g = new_run(), torch.Generator().manual_seed(3)
        x, t = points(100)
        train, val = TensorDataset(x[:70], t[:70]), TensorDataset(x[70:], t[70:])
        if which == "sampler":
            found["batches"] = DataLoader(train, 16, sampler=torch.utils.data.RandomSampler(train, generator=g))
        if which == "validation":
            found["val_batches"] = DataLoader(val, 7, shuffle=True, generator=g)
        if which == "shared":
            found["batches"] = DataLoader(train, 16, shuffle=True, generator=g)
            found["val_batches"] = DataLoader(val, 7, shuffle=True, generator=g)
        return found if look else found | {"val_batches": None}

    through = run()
    wanted = fit(**through)
    assert fit(**run(look=False)).train_loss == wanted.train_loss
    with pytest.raises(Killed):
        fit(**run() | {"loss_fn": killed_at(13)}, checkpoint=tmp_path / "run")
    resumed = run()
    assert fit(**resumed, checkpoint=tmp_path / "run") == wanted
    assert_equal(resumed, through)


@pytest.mark.parametrize(
    ("settings", "schedule", "message"),
    [
        ({"lr": 0.02}, "none", "lr of group 0 is 0.01 in the file, expected 0.02"),
        ({"weight_decay": 0.3}, "cosine", "weight_decay of group 0 is 0.01 in the file, expected 0.3"),
        ({"betas": (0.5, 0.9)}, "cosine", r"betas of group 0 is \[0.9, 0.999\] in the file, expected \[0.5, 0.9\]"),
        ({}, "longer", "T_max of schedule is 25 in the file, expected 50"),
    ],
)
def test_changed_settings_are_refused(tmp_path, settings, schedule, message):
    first = "cosine" if schedule == "longer" else schedule
    fit(**new_run(scheduler=SCHEDULES[first]) | {"epochs": 1}, checkpoint=tmp_path / "run")
    run = new_run()
    optimizer = torch.optim.AdamW(run["model"].parameters(), **{"lr": 0.01} | settings)
    made = {"none": None, "cosine": SCHEDULES["cosine"], "longer": lambda o: lr_scheduler.CosineAnnealingLR(o, 50)}
    scheduler = made[schedule](optimizer) if made[schedule] else None
    with pytest.raises(CheckpointError, match=message):
        fit(**run | {"optimizer": optimizer, "scheduler": scheduler}, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("schedule", ["none", "one cycle", "milestones", "warm restarts"])
def test_the_same_objects_go_on_too(tmp_path, schedule):
    """A cell that only calls fit again, after an interrupt, is no change of settings."""
    run = new_run(scheduler=SCHEDULES[schedule])
    with pytest.raises(Killed):
        fit(**run | {"loss_fn": killed_at(13)}, checkpoint=tmp_path / "run")
    assert fit(**run, checkpoint=tmp_path / "run") == fit(**new_run(scheduler=SCHEDULES[schedule]))


def test_other_parts_of_a_schedule_or_another_order_of_parameters_are_refused(tmp_path):
    run = new_run(scheduler=SCHEDULES["warm-up, then cosine"])
    fit(**run | {"epochs": 1}, checkpoint=tmp_path / "run")
    other = new_run()
    three = lr_scheduler.SequentialLR(
        other["optimizer"], [lr_scheduler.ConstantLR(other["optimizer"]) for _ in range(3)], milestones=[2, 4]
    )
    with pytest.raises(CheckpointError, match="SequentialLR, LinearLR, CosineAnnealingLR in the file"):
        fit(**other | {"scheduler": three}, checkpoint=tmp_path / "run")
    optimizer = torch.optim.AdamW(list(other["model"].parameters())[::-1])
    with pytest.raises(CheckpointError, match="trained is"):
        load_checkpoint(tmp_path / "run", other["model"], optimizer)


def test_more_patience_goes_on_where_less_stopped(tmp_path):
    run = new_run(patience=1) | {"epochs": 200}
    assert fit(**run, checkpoint=tmp_path / "run").stopped
    longer = new_run(patience=3) | {"epochs": 200}
    history = fit(**longer, checkpoint=tmp_path / "run")
    assert history.stopped
    assert history == fit(**new_run(patience=3) | {"epochs": 200})


def test_a_validation_loss_that_is_not_a_number_is_never_the_best():
    history = History()
    better = [history.close_epoch(loss) for loss in (math.nan, 0.5, math.nan, 0.4, 0.45)]
    assert better == [False, True, False, True, False]
    assert history.best_epoch == 4
    history.close_epoch(0.5, patience=2)
    assert history.stopped


def test_a_stream_without_a_length_trains():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from zip(*points(32), strict=True)

    history = fit(**new_run() | {"batches": DataLoader(Stream(), 16), "epochs": 3})
    assert len(history.train_loss) == 6


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {1, 2}

    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path / "run", Extra(2, 2))


def test_train_step_clips_as_torch_does():
    ours, theirs = new_run("SGD"), new_run("SGD")
    batch = points(20)
    torch.manual_seed(1)
    loss = train_step(ours["model"], batch, optimizer=ours["optimizer"], loss_fn=loss_fn, clip=0.01)
    torch.manual_seed(1)
    expected = loss_fn(theirs["model"], batch)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs["model"].parameters(), 0.01)
    theirs["optimizer"].step()
    assert norm > 0.01
    assert loss == expected.item()
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs and patience must be ≥ 1"),
        ({"patience": 0}, "epochs and patience must be ≥ 1"),
        ({"patience": 2, "val_batches": None}, "patience needs val_batches"),
        ({"batches": iter([])}, "batches gave nothing"),
        ({"val_batches": []}, "batches gave nothing"),
        ({"checkpoint": "no/such/folder/run"}, "the folder of the checkpoint no/such/folder/run does not exist"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit(**new_run() | change)


def test_a_generator_of_batches_is_noticed_in_the_second_epoch():
    run = new_run()
    with pytest.raises(ValueError, match="not a generator that is used up"):
        fit(**run | {"batches": (batch for batch in run["batches"])})


def test_a_language_model_trains_with_the_same_loop(tmp_path):
    tokens = torch.arange(60) % 7
    x, y = tokens[:-1].unfold(0, 8, 1), tokens[1:].unfold(0, 8, 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 16), nn.Linear(16, 7))

    def next_token(model, batch):
        return F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())

    batches = [{"x": x[rows], "y": y[rows]} for rows in torch.arange(len(x)).split(10)]
    history = fit(
        model, batches, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1), loss_fn=next_token, epochs=10,
        val_batches=batches, progress=False,
    )  # fmt: skip
    assert history.train_loss[0] > 1.5
    assert history.val_loss[-1] < 0.05
    assert history.best_epoch > 5
    assert not model.training
    assert isinstance(history, History)
