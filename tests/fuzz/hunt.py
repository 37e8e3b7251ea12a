"""Hunt for inputs that break a target: python tests/fuzz/hunt.py TARGET [--seconds N] [--seed N].

Under atheris (coverage-guided) where it is installed, else with our own mutations. What is found goes into
tests/fuzz/corpus/TARGET as a regression, once it is mended.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--own", action="store_true", help="our own mutations, even where atheris is installed")
    given = parser.parse_args()
    try:
        import atheris
    except ModuleNotFoundError:
        atheris = None
    if atheris is None or given.own:
        from test_fuzz import hunt

        print(f"{hunt(given.target, given.seconds, given.seed):,} inputs, nothing found")
        return
    import tempfile

    with atheris.instrument_imports(include=["perpline"]):
        from targets import TARGETS, quiet, seeds
    known = Path(tempfile.mkdtemp(prefix="perpline-seeds-"))
    for number, data in enumerate(seeds(given.target)):
        (known / f"{number}").write_bytes(data)
    target = TARGETS[given.target]

    def one(data: bytes) -> None:
        with quiet():
            target(data)

    options = [
        f"-artifact_prefix={tempfile.gettempdir()}/",
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        "-max_len=65536",
        "-timeout=10",
    ]
    atheris.Setup([sys.argv[0], str(known), *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
