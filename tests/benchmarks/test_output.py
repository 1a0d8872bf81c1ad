"""What commands print: no line about other libraries that nobody who runs a comparison can act upon."""

import logging

import benchmarks


def test_how_fla_names_its_cache_is_not_told():
    """By transformers from 5.24 on, at the first call of any of FLA's models, in every process."""
    logger, told = logging.getLogger("transformers.utils.generic"), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.warning(f"{benchmarks.OLD_NAME}. Use `cache` instead.")
        logger.warning("another line")
    finally:
        logger.removeHandler(handler)
    assert told == ["another line"]
