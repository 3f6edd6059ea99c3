"""Pretraining: a run that neither a kill, a full disk, a damaged file nor a second process can spoil."""

import functools
import itertools
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llmscratch.basis.train import CheckpointError
from llmscratch.kit import DataUnavailable, asset_file, fast_bf16, stories
from llmscratch.scientist import pretrain as module
from llmscratch.scientist import storyteller as storyteller_module
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.muon import Muon, orthogonal
from llmscratch.scientist.pretrain import (
    Batches,
    Recipe,
    checkpoints,
    hub_source,
    pretrain,
    story_source,
    train_step,
)
from llmscratch.scientist.stories import World
from llmscratch.scientist.storyteller import (
    encode,
    load_model,
    nats,
    rows,
    save_model,
    story_bits,
    storyteller,
    tell,
    telling,
)
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

TINY = Recipe(
    n_layer=2, n_head=2, d_model=16, context=40, batch=4, micro=4, steps=12, lr=3e-3, warmup=3, bf16=False
)  # fmt: skip
V = 64


pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def documents(n=50):
    """Documents of 3 to 39 random ids."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, V, draw.integers(3, 40)).astype(np.uint16) for _ in range(n)]


def run(folder=None, recipe=TINY, **options):
    model = recipe.model(V)
    batches = Batches(lambda epoch: documents(), recipe.batch, recipe.seed)
    return model, pretrain(recipe, batches, model, folder=folder, progress=False, **options)


def same_weights(a, b):
    return all(torch.equal(a.state_dict()[name], tensor) for name, tensor in b.state_dict().items())


def losses(log):
    return [entry["loss"] for entry in log]


# Batches


def test_a_batch_depends_on_the_step_alone():

    def source(epoch):
        return documents() if epoch % 2 == 0 else documents()[::-1]

    straight, jumping = Batches(source, 4, seed=3), Batches(source, 4, seed=3)
    in_order = [[ids.tolist() for ids in straight[step]] for step in range(30)]
    for step in (29, 0, 13, 12, 11, 25):
        assert [ids.tolist() for ids in jumping[step]] == in_order[step]
    other = Batches(source, 4, seed=4)
    assert [ids.tolist() for ids in other[0]] != in_order[0]


def test_an_epoch_meets_each_document_at_most_once_and_like_lengths_together():
    batches = Batches(lambda epoch: documents(), 4, pool=100)
    seen = [id(ids) for step in range(len(batches.order)) for ids in batches[step]]
    assert len(seen) == len(set(seen)) == 48
    assert max(max(map(len, b)) - min(map(len, b)) for b in (batches[s] for s in range(12))) < 8
    with pytest.raises(ValueError, match="50 documents do not fill one batch of 51"):
        Batches(lambda epoch: documents(), 51)
    shrinking = Batches(lambda epoch: documents()[epoch:], 4)
    for _ in range(2):  # whoever asks again gets no batch of the unfit epoch
        with pytest.raises(ValueError, match="epoch 1 has 49 documents, the first had 50"):
            shrinking[12]
    assert len(shrinking[0]) == 4


def test_rows_pad_and_leave_the_padding_out():
    tokens, targets = rows([np.array([1, 2, 3], np.uint16), np.array([4, 5], np.uint16)])
    assert tokens.tolist() == [[1, 2], [4, 0]] and targets.tolist() == [[2, 3], [5, -100]]
    model = TINY.model(V)
    together = nats(model, documents()[:7])
    alone = torch.cat([nats(model, [ids]) for ids in documents()[:7]])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(story_bits(model, documents()[:7], batch=3) * math.log(2), alone.detach(), rtol=1e-5)
    assert story_bits(model, []).shape == (0,)


def test_encode_begins_ends_and_cuts():
    tokenizer = storyteller_tokenizer()
    text = stories("validation")[0].text
    (whole,) = encode([text], tokenizer, 384)
    assert whole.dtype == np.uint16 and whole[0] == whole[-1] == 2044 and tokenizer.decode(whole[1:-1].tolist()) == text
    pieces = encode([text], tokenizer, 50)
    assert max(map(len, pieces)) == 51 and all(a[-1] == b[0] for a, b in itertools.pairwise(pieces))
    assert np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])]).tolist() == whole.tolist()
    with pytest.raises(ValueError, match="context must be at least 1"):
        encode([text], tokenizer, 0)


# The recipe


@pytest.mark.parametrize(
    "unfit",
    [{"batch": 0}, {"micro": 0}, {"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"clip": -1.0},
     {"warmup": 3_000, "steps": 3_000}, {"warmup": -1}, {"floor": 1.5}, {"floor": -0.1},
     {"batch": 2.5}, {"lr": math.inf}, {"weight_decay": -1}, {"beta2": 1.0}],
)  # fmt: skip
def test_an_unfit_recipe_is_refused(unfit):
    with pytest.raises(ValueError, match=next(iter(unfit))):
        Recipe(**unfit)


def test_the_learning_rate_climbs_in_a_line_and_falls_along_a_cosine():
    recipe = Recipe(steps=1_000, warmup=100, lr=2.0, floor=0.1)
    rates = [recipe.lr_at(step) for step in range(1_000)]
    assert rates[0] == pytest.approx(0.02) and rates[99] == rates[100] == 2.0
    np.testing.assert_allclose(np.diff(rates[:100]), 0.02, rtol=1e-9)
    assert rates[550] == pytest.approx(2.0 * (0.1 + 0.9 / 2)) and recipe.lr_at(1_000) == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900, eta_min=0.2)
    for step in range(100, 1_000):
        assert rates[step] == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step(), theirs.step()
    assert Recipe(steps=10, warmup=0).lr_at(0) == Recipe().lr


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 64, 16), (2, 16, 64), (1, 1, 8)])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_1(shape):
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    s = torch.linspace(1, 0.05, s.shape[1]).expand(s.shape)
    made = orthogonal(u * s[:, None] @ vt).float()
    values = u.mT @ made @ vt.mT  # diagonal, if the singular vectors are the same
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert made.shape == shape and diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < 0.1
    assert not orthogonal(torch.zeros(shape)).any()


def test_muon_computes_in_the_format_of_its_group_and_recipes_choose_the_fast_one():
    matrices = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0))
    exact, short = orthogonal(matrices), orthogonal(matrices, bf16=True)
    assert (exact.dtype, short.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(short.float(), exact, rtol=0, atol=0.02)
    assert Recipe().bf16 is fast_bf16()
    moved = {}
    for bf16 in (False, True):
        recipe = replace(TINY, bf16=bf16, muon=True)
        model = recipe.model(V)
        optimizer, weight = recipe.optimizer(model), model.h[0].mlp.c_fc.weight
        assert {group["bf16"] for group in optimizer.param_groups} == {bf16}
        start = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        moved[bf16] = weight.detach() - start
    assert not torch.equal(moved[True], moved[False])
    torch.testing.assert_close(moved[True], moved[False], rtol=0, atol=0.02 * moved[False].abs().max().item())


def matrices_and_gradients(steps=6):
    draw = torch.Generator().manual_seed(0)
    shapes = ((8, 24), (24, 8), (8, 24), (8, 8))
    starts = [torch.randn(shape, generator=draw) for shape in shapes]
    return starts, [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(steps)]


def descend(optimizer, at, gradients):
    for now in gradients:
        for p, g in zip(at, now, strict=False):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach().clone() for p in at]


def test_muon_is_torchs_and_its_other_groups_are_adamw():
    starts, gradients = matrices_and_gradients()
    fresh = lambda: [start.clone().requires_grad_() for start in starts]  # noqa: E731
    ours = fresh()
    usual = {"lr": 0.01, "weight_decay": 0.1}
    mixed = Muon([{"params": ours[:2], "muon": True}, {"params": ours[2:]}], betas=(0.9, 0.95), **usual)
    ours = descend(mixed, ours, gradients)
    theirs = fresh()
    muon = torch.optim.Muon(theirs[:2], adjust_lr_fn="match_rms_adamw", **usual)
    theirs = descend(muon, theirs[:2], gradients) + descend(
        torch.optim.AdamW(theirs[2:], betas=(0.9, 0.95), **usual), theirs[2:], [g[2:] for g in gradients]
    )
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        assert (mine - other).norm() < 0.02 * (other - start).norm()
    assert torch.equal(torch.cat(ours[2:], 1), torch.cat(theirs[2:], 1))


def test_muon_passes_over_what_has_no_gradient_and_goes_on_from_its_state():
    starts, gradients = matrices_and_gradients()
    groups = lambda at: [{"params": at[:3], "muon": True}, {"params": at[3:]}]  # noqa: E731
    whole = [start.clone().requires_grad_() for start in starts]
    wanted = descend(Muon(groups(whole), lr=0.01), whole, gradients)
    cut = [start.clone().requires_grad_() for start in starts]
    first = Muon(groups(cut), lr=0.01)
    descend(first, cut, gradients[:3])
    assert all(p.grad is None for p in cut[:3]) and cut[3].grad is not None
    second = Muon(groups(cut), lr=0.5)
    second.load_state_dict(first.state_dict())
    assert all(map(torch.equal, descend(second, cut, gradients[3:]), wanted))
    before = [p.detach().clone() for p in cut]
    second.zero_grad()
    second.step()
    assert all(map(torch.equal, before, cut))


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"matrices.*\(5,\)"):
        Muon([{"params": [torch.zeros(5, requires_grad=True)], "muon": True}])


def test_muon_gets_the_matrices_of_the_blocks_and_only_biases_and_layer_norms_do_not_decay():
    for muon in (True, False):
        model = replace(TINY, muon=muon).model(V)
        names = {id(p): name for name, p in model.named_parameters()}
        optimizer = replace(TINY, muon=muon, weight_decay=0.3).optimizer(model)
        found = {names[id(p)]: (g["muon"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
        assert found.keys() == set(names.values())
        for name, p in model.named_parameters():
            inside = muon and p.ndim == 2 and name.startswith("h.")
            decays = not (name.endswith("bias") or "ln" in name)
            assert found[name] == (inside, 0.3 if decays else 0)
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, TINY.beta2)}


def test_a_recipe_makes_the_same_model_again():
    assert same_weights(TINY.model(V), TINY.model(V))
    assert not same_weights(TINY.model(V), replace(TINY, seed=1).model(V))
    assert TINY.model(V).wte.weight.std().item() == pytest.approx(0.02 * math.sqrt(768 / 16), rel=0.1)


# The step


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_a_batch_in_pieces_is_the_batch(micro):
    found = {}
    for m in (micro, 11):
        recipe, torch_model = replace(TINY, batch=11, micro=m, clip=1e9, muon=False), TINY.model(V)
        loss, norm = train_step(torch_model, recipe.optimizer(torch_model), documents()[:11], recipe, 1e-3)
        found[m] = loss, norm, torch.cat([p.grad.flatten() for p in torch_model.parameters()])
    assert found[micro][0] == pytest.approx(found[11][0], rel=1e-6)
    assert found[micro][1] == pytest.approx(found[11][1], rel=1e-5)
    assert (found[micro][2] - found[11][2]).norm() < 1e-5 * found[11][2].norm()


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_mean():
    ours, theirs = TINY.model(V), TINY.model(V)
    recipe = replace(TINY, clip=0.5, muon=False)
    optimizer, reference = recipe.optimizer(ours), recipe.optimizer(theirs)
    for step in range(3):
        batch = documents()[4 * step : 4 * step + 4]
        loss, norm = train_step(ours, optimizer, batch, recipe, lr=2e-3)
        tokens, targets = rows(batch)
        expected = theirs.loss(tokens, targets)
        reference.zero_grad()
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = 2e-3
        reference.step()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-4)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(name), rtol=1e-3, atol=2e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights():
    model = TINY.model(V)
    with torch.no_grad():
        model.ln_f.weight[0] = math.inf
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss nan"):
        train_step(model, TINY.optimizer(model), documents()[:4], TINY, 1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_batch_without_documents_is_refused():
    model = TINY.model(V)
    with pytest.raises(ValueError, match="at least one document"):
        train_step(model, TINY.optimizer(model), [], TINY, 1e-3)


def test_bf16_gives_nearly_the_same_loss_and_float32_weights():
    model = TINY.model(V)
    exact, rough = story_bits(model, documents()[:8]), story_bits(model, documents()[:8], bf16=True)
    np.testing.assert_allclose(rough, exact, rtol=0.02)
    train_step(model, TINY.optimizer(model), documents()[:4], replace(TINY, bf16=True), 1e-3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Stopping and going on


def test_a_run_goes_on_bit_for_bit(tmp_path):
    model, log = run(tmp_path / "one")

    class Stop(BaseException):
        pass

    def stop(step, model):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "two", save_every=5, look=stop, look_every=1)
    assert [path.name for path in checkpoints(tmp_path / "two")] == ["step_0000005.safetensors"]
    resumed, log_resumed = run(tmp_path / "two", save_every=5)
    assert same_weights(resumed, model) and losses(log_resumed) == losses(log) and len(log) == 12
    assert [entry["step"] for entry in log_resumed] == list(range(1, 13))
    again, log_again = run(tmp_path / "two")  # a run that is finished has nothing left to do
    assert same_weights(again, model) and losses(log_again) == losses(log) and not again.training


def test_looking_changes_nothing(tmp_path):
    model, _ = run()
    looked, log = run(look=lambda step, model: {"bits": float(story_bits(model, documents()[:3]).sum())}, look_every=5)
    assert same_weights(model, looked)
    assert [entry["step"] for entry in log if "bits" in entry] == [5, 10, 12]


def test_the_last_two_checkpoints_stay(tmp_path):
    run(tmp_path, save_every=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_0000010.safetensors", "step_0000012.safetensors"]


CHILD = """
    import sys
    sys.path.insert(0, {tests!r})
    import test_pretrain as t, torch
    torch.set_num_threads(1)
    t.run(sys.argv[1], t.replace(t.TINY, steps=1_000), save_every=5)
"""


def test_sigkill_never_loses_a_checkpoint(tmp_path):
    """A process is killed at a random moment after its first checkpoint; then another goes on."""
    code = textwrap.dedent(CHILD.format(tests=str(Path(__file__).parent)))
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.time() + 60
    while not checkpoints(tmp_path) and time.time() < deadline and child.poll() is None:
        time.sleep(0.002)
    time.sleep(random.random() * 0.5)
    child.kill()
    child.wait()
    newest = checkpoints(tmp_path)[-1]
    with safe_open(newest, "pt") as file:
        step = len(json.loads(file.metadata()["about"])["notes"]["log"])
    assert newest.name == f"step_{step:07d}.safetensors"
    recipe, seen = replace(TINY, steps=1_000), []
    model = recipe.model(V)
    batches = Batches(lambda epoch: documents(), recipe.batch)

    def stop(at, model):
        seen.append(at)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, batches, model, folder=tmp_path, save_every=1_000, look=stop, look_every=1, progress=False)
    assert seen[0] == step + 1  # no step before the checkpoint is lost, whatever came after is computed again
    whole = recipe.model(V)
    optimizer = recipe.optimizer(whole)
    for at in range(step + 7):
        train_step(whole, optimizer, batches[at], recipe, recipe.lr_at(at))
    assert same_weights(model, whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, damage):
    model, _ = run(tmp_path, save_every=5)
    newest = checkpoints(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    newest.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    told = r"step_0000012.*damaged.*To go on from step_0000010\.safetensors, remove it"
    with pytest.raises(CheckpointError, match=told):
        run(tmp_path, save_every=5)
    assert newest.exists()
    newest.unlink()
    assert same_weights(run(tmp_path, save_every=5)[0], model)


def test_another_recipe_does_not_go_on(tmp_path):
    run(tmp_path, save_every=5)
    with pytest.raises(CheckpointError, match="recipe is .* expected") as error:
        run(tmp_path, replace(TINY, lr=1e-3))
    assert "remove it" not in str(error.value)
    other_data = Batches(lambda epoch: documents()[::-1], TINY.batch)
    with pytest.raises(CheckpointError, match="data is .* expected"):
        pretrain(TINY, other_data, TINY.model(V), folder=tmp_path, progress=False)


@pytest.mark.parametrize("other", [{"batch": 5}, {"batch": 4, "seed": 1}])
def test_batches_must_be_those_of_the_recipe(other):
    with pytest.raises(ValueError, match="the recipe has batch 4 and seed 0, but batches has"):
        pretrain(TINY, Batches(lambda epoch: documents(), **other), TINY.model(V), progress=False)


def test_a_full_disk_is_told_and_leaves_whole_files(tmp_path):
    """In a process of its own, the operating system refuses files larger than one and a half checkpoints allow."""
    resource = pytest.importorskip("resource")
    run(tmp_path, replace(TINY, steps=40), save_every=20)
    size = max(path.stat().st_size for path in checkpoints(tmp_path))
    for path in checkpoints(tmp_path)[1:]:
        path.unlink()
    code = textwrap.dedent(f"""
        import sys, resource, signal
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_pretrain as t, torch
        torch.set_num_threads(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size} // 2, resource.RLIM_INFINITY))
        try:
            t.run(sys.argv[1], t.replace(t.TINY, steps=40), save_every=20)
        except t.CheckpointError as error:
            print(error)
    """)
    assert resource
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "step_0000040.safetensors could not be written" in done.stdout, done.stdout + done.stderr
    assert "Whole checkpoints: step_0000020.safetensors" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000020.safetensors"]
    model, log = run(tmp_path, replace(TINY, steps=40), save_every=20)
    assert len(log) == 40 and same_weights(model, run(None, replace(TINY, steps=40))[0])


def test_a_disk_that_fills_up_half_way(tmp_path, monkeypatch):
    run(tmp_path, save_every=6)
    newest = checkpoints(tmp_path)[-1]
    newest.unlink()

    def half(path, *rest, **more):
        Path(f"{path}.tmp").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_checkpoint", half)
    with pytest.raises(CheckpointError, match="Is the disk full"):
        run(tmp_path, save_every=6)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000006.safetensors"]


# Several processes, and the command


def small_data(module):
    """Fewer stories an epoch and to look at, so that the command starts sooner."""
    few = stories("validation")[:6]
    module.story_source = functools.partial(story_source, size=40)
    module.stories = lambda split: few
    module.tell = lambda model, tokenizer, generator: ["…"]


SMALL_DATA = """
    import sys
    sys.path.insert(0, {tests!r})
    import test_pretrain as t
    t.small_data(t.module)
    t.module.main()
"""


def test_two_processes_give_the_losses_of_one(tmp_path, monkeypatch):
    """The command itself, in this process and in two under torchrun."""
    for name in ("story_source", "stories", "tell"):
        monkeypatch.setattr(module, name, getattr(module, name))  # puts them back afterwards
    script = tmp_path / "small_data.py"
    script.write_text(textwrap.dedent(SMALL_DATA.format(tests=str(Path(__file__).parent))))
    sizes = "--n_layer 1 --n_head 2 --d_model 16 --context 288 --batch 5 --micro 2 --steps 9 --warmup 2 --no-bf16"
    sizes = ["--threads", "1", "--lr", "0.01", *sizes.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(module.__file__).parents[2])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command = [*torchrun, "--out", str(tmp_path / "two"), *sizes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    small_data(module)
    module.main(["--out", str(tmp_path / "one"), *sizes])
    logs, models = {}, {}
    for name in ("one", "two"):
        with safe_open(checkpoints(tmp_path / name)[-1], "pt") as file:
            logs[name] = json.loads(file.metadata()["about"])["notes"]["log"]
        models[name], notes = load_model(tmp_path / name / "model.safetensors")
        assert notes["tokens"] == sum(entry["tokens"] for entry in logs[name]) and notes["curve"][-1][0] == 9
    np.testing.assert_allclose(losses(logs["two"]), losses(logs["one"]), rtol=1e-4)
    assert losses(logs["one"])[-1] < losses(logs["one"])[0] - 0.3
    for key in ("tokens", "lr", "step"):
        assert [entry[key] for entry in logs["two"]] == [entry[key] for entry in logs["one"]]
    for name, p in models["one"].named_parameters():
        torch.testing.assert_close(models["two"].get_parameter(name), p, rtol=0.02, atol=2e-3)


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "llmscratch.scientist.pretrain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f"--{field.name}" in done.stdout for field in fields(Recipe)) and "--out" in done.stdout


def test_at_full_scale_the_command_reads_the_hub_on_a_larger_model(monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_SCALE", "full")
    out, _, recipe = module._options(["--out", "there", "--steps", "300", "--warmup", "5", "--no-bf16"])
    assert out == Path("there") and (recipe.steps, recipe.bf16, recipe.d_model, recipe.batch) == (300, False, 768, 256)

    def asked(tokenizer, context):
        raise InterruptedError(f"the Hub was asked for documents of {context} tokens")

    monkeypatch.setattr(module, "hub_source", asked)
    with pytest.raises(InterruptedError, match="512 tokens"):
        module.main(["--out", "there"])


def test_too_small_a_batch_for_the_processes_is_refused(monkeypatch):
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 8)
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 8 processes"):
        run()


# Where text comes from


def test_every_epoch_brings_new_stories():
    source = story_source(storyteller_tokenizer(), 384, size=12)
    first, again, second = source(0), source(0), source(1)
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again] and len(first) == len(second) == 12
    told = {bytes(ids) for ids in first + second}
    assert len(told) == 24
    known = {bytes(ids) for ids in encode((s.text for s in stories("validation")), storyteller_tokenizer(), 384)}
    assert not told & known


def test_without_a_network_the_hub_says_what_to_use_instead(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*args, **more):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(DataUnavailable, match="TinyStories"):
        hub_source(storyteller_tokenizer(), 512)(0)


def test_the_hub_is_read_on_from_epoch_to_epoch(monkeypatch):
    class Stream(list):
        def skip(self, n):
            return Stream(self[n:])

    texts = Stream({"text": f"A story about the number {n}."} for n in range(20))
    monkeypatch.setattr(module, "tinystories", lambda split: texts)
    tokenizer = storyteller_tokenizer()
    source = hub_source(tokenizer, 64, size=4, total=19)  # four whole epochs, then the first again
    told = [tokenizer.decode(ids[1:-1].tolist()) for epoch in (0, 3, 4) for ids in source(epoch)]
    assert told == [texts[n]["text"] for n in (0, 1, 2, 3, 12, 13, 14, 15, 0, 1, 2, 3)]


# Telling and keeping


@functools.cache
def small_model():
    return GPT(GPTConfig(2048, 48, 2, 2, 32), torch.Generator().manual_seed(0), std=0.1).eval()


def test_tell_writes_what_generate_writes():
    tokenizer, model = storyteller_tokenizer(), small_model()
    prompt = tokenizer.encode("One day")
    ids = model.generate(torch.tensor([[2044, *prompt]]), 48 - len(prompt), temperature=0)[0, 1:].tolist()
    ids = ids[: ids.index(2044)] if 2044 in ids else ids
    for n in (1, 3):
        assert tell(model, tokenizer, n, prompt="One day", temperature=0) == [tokenizer.decode(ids)] * n
    first, again, other = (tell(model, tokenizer, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first == again != other and len(set(first)) == 4
    with pytest.raises(ValueError, match="temperature"):
        tell(model, tokenizer, temperature=-1)
    with pytest.raises(ValueError, match="the context is 48"):
        tell(model, tokenizer, prompt="One day. " * 20)
    assert tell(model, tokenizer, 0) == []


def test_tell_stops_each_story_at_its_own_end():
    """Each of several stories is as if the model read the whole text again for every token."""
    tokenizer, model = storyteller_tokenizer(), small_model()
    told = tell(model, tokenizer, 6, temperature=1.5, generator=torch.Generator().manual_seed(4))
    draw, ids, going = torch.Generator().manual_seed(4), [[2044] for _ in range(6)], list(range(6))
    while going and len(ids[going[0]]) <= 48:
        with torch.no_grad():
            logits = model(torch.tensor([ids[i] for i in going]))[:, -1]
        drawn = torch.multinomial((logits / 1.5).softmax(-1), 1, generator=draw)[:, 0].tolist()
        for i, token in zip(going, drawn, strict=True):
            ids[i].append(token)
        going = [i for i in going if ids[i][-1] != 2044]
    assert told == [tokenizer.decode(row[1:-1] if row[-1] == 2044 else row[1:]) for row in ids]


def test_tell_stops_at_the_end_and_keeps_the_mode():
    tokenizer, model = storyteller_tokenizer(), GPT(GPTConfig(2048, 48, 1, 1, 8), torch.Generator().manual_seed(0))
    with torch.no_grad():  # END after everything
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(torch.ones(8))
        model.wte.weight[2044] = 10.0
    model.train()
    assert tell(model, tokenizer, 2, prompt="Hm.", temperature=0) == ["Hm.", "Hm."] and model.training


def test_telling_is_tell_in_pieces_of_whole_characters():
    tokenizer, model = storyteller_tokenizer(), small_model()
    for seed in range(3):  # a model that knows nothing writes many halves of characters
        pieces = list(telling(model, tokenizer, prompt="Ü", generator=torch.Generator().manual_seed(seed)))
        (told,) = tell(model, tokenizer, prompt="Ü", generator=torch.Generator().manual_seed(seed))
        assert "Ü" + "".join(pieces) == told and len(pieces) > 10
    snowman = tokenizer.encode("☃")
    assert len(snowman) > 1  # else the next lines show nothing
    end = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})
    drawn = iter([*snowman, *end])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storyteller_module, "_draw", lambda *_: [next(drawn)])
        assert [piece for piece in telling(model, tokenizer) if piece] == ["☃"]
    with pytest.raises(ValueError, match="temperature"):
        next(telling(model, tokenizer, temperature=-1))
    model.train()
    begun = telling(model, tokenizer)
    next(begun)
    begun.close()  # a reader who has had enough
    assert model.training


def test_the_command_tells_a_story_and_refuses_what_it_cannot_do(monkeypatch, capsys):
    monkeypatch.setattr(storyteller_module, "storyteller", lambda: (small_model(), storyteller_tokenizer()))
    for _ in range(2):
        storyteller_module.command(["One day", "--seed", "5", "--temperature", "1"])
    first, again = capsys.readouterr().out.split("One day")[1:]
    assert first.strip() == again.strip() != ""
    for words, said in (
        (["--temperature", "-1"], "temperature must be at least 0, got -1.0"),
        (["word " * 60], "the context is 48"),
        (["--speed", "3"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit) as ended:
            storyteller_module.command(words)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_model_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(path, small_model(), {"curve": [[1, 2.5]]})
    loaded, notes = load_model(path)
    assert same_weights(loaded, small_model()) and notes == {"curve": [[1, 2.5]]} and not loaded.training
    assert loaded.config == small_model().config and [p.name for p in tmp_path.iterdir()] == [path.name]
    data = path.read_bytes()

    def half(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmscratch.scientist.storyteller.save_file", half)
    with pytest.raises(OSError, match="No space"):
        save_model(path, small_model(), {})
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == [path.name]
    path.write_bytes(data[:1000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_model(path)
    path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    with pytest.raises(ValueError, match="its checksum is not that"):
        load_model(path)


def test_another_safetensors_file_is_no_model(tmp_path):
    run(tmp_path, save_every=12)
    with pytest.raises(ValueError, match="holds no model of this course"):
        load_model(checkpoints(tmp_path)[-1])


# The Storyteller that the course ships


def test_the_storyteller_needs_hardly_more_bits_than_its_stories_hold():
    model, tokenizer = storyteller()
    few = stories("validation")[-24:]
    paid = story_bits(model, encode((s.text for s in few), tokenizer, model.config.context)).sum()
    assert 0.97 < paid / sum(s.bits for s in few) < 1.09
    path = asset_file("checkpoints/storyteller.safetensors")
    notes = load_model(path)[1]
    assert path.stat().st_size <= 25e6 and set(notes["recipe"]) == set(asdict(Recipe()))
    assert notes["curve"][-1][1] < notes["curve"][0][1] / 4


def test_the_storyteller_tells_stories_that_the_generator_could_have_told():
    model, tokenizer = storyteller()
    told = tell(model, tokenizer, 20, temperature=0.3, generator=torch.Generator().manual_seed(1))
    world = World.load()
    possible = [any(True for _ in world.paths(text)) for text in told]
    assert sum(possible) >= 6, "\n".join(text for text, fine in zip(told, possible, strict=True) if not fine)
    assert len(set(told)) == 20
