import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


@pytest.fixture
def texts(monkeypatch):
    """The texts of the figures that a test has written."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return lambda: [text for figure in figures for text in figure.findobj(Text)]
