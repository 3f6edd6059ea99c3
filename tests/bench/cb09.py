"""What CB 09 claims: a training step beside micrograd's, each engine in processes of its own."""

from sklearn.datasets import make_moons

from llmscratch.kit import Race, race_apart
from tests.bench import row
from tests.bench.lessons import source


def program(engine: str) -> str:
    points, labels = make_moons(n_samples=100, noise=0.1, random_state=1)
    step = source("01_common_basis/09_autograd", "make_step")
    call = f"step = make_step(Value, {points.tolist()}, {(2 * labels - 1).tolist()})"
    return f"from {engine} import Value\n{step}\n{call}"


@row("CB09: one training step on two moons; theirs: micrograd", at_most=1 / 3)
def beside_micrograd() -> Race:
    return race_apart("one step", program("llmscratch.basis.autograd"), program("micrograd.engine"), calls=5, repeats=5)
