"""lm-evaluation-harness on saved models, by its model type `hf`: its command line, with this package imported.

    python -m fla_bdlru.integrations.lm_eval run --model hf --model_args pretrained=FOLDER --tasks lambada_openai

Everything after the module's name is lm_eval's own. From Python, `import fla_bdlru` before
`lm_eval.simple_evaluate(model="hf", ...)` is all there is to it.
"""

import fla_bdlru  # noqa: F401  makes transformers and FLA know the models


def main() -> None:
    """Runs lm_eval's command line.

    Raises:
        SystemExit: where lm_eval is not installed, with what to do, or as lm_eval does.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"lm-evaluation-harness needs {error.name!r}, which is missing: `pip install 'lm_eval[hf]'`."
        ) from error
    cli_evaluate()


if __name__ == "__main__":
    main()
