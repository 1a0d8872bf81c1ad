import pytest
from matplotlib.text import Text


@pytest.fixture
def texts(figures):
    """The texts of the figures that a test has written."""
    return lambda: [text for figure in figures for text in figure.findobj(Text)]
