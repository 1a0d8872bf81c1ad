"""Replacements behind FLA's signatures: what is passed on, what is ignored, what is refused and by which error."""

import inspect

import pytest
import torch

from fla_bdlru.fla_cpu.binding import by_name


def theirs(q, k, scale=None, cu_seqlens=None, chunk_size=64, cp_context=None, *, sink=2, **kwargs):
    """FLA's function."""


def plain(q, k, scale=None, cp_context=None):
    """FLA's function without `**kwargs`."""


def test_arguments_come_by_name_with_flas_defaults():
    bound = by_name(theirs, lambda sink, k, q, scale, A_log=7: (q, k, scale, sink, A_log))
    assert bound(1, 2) == (1, 2, None, 2, 7)
    assert bound(1, k=3, scale=4, sink=5, A_log=6) == (1, 3, 4, 5, 6)
    assert inspect.signature(bound) == inspect.signature(theirs)
    assert bound.__name__ == "theirs"


def test_shared_options_go_on_together():
    bound = by_name(theirs, lambda q, k, **options: options)
    assert bound(1, 2, 0.5, [0, 3]) == {"scale": 0.5, "cu_seqlens": [0, 3]}


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((1,), {}, r"theirs\(\) missing 1 required positional argument: 'k'"),
        ((1, 2), {"k": 3}, r"theirs\(\) got multiple values for argument 'k'"),
        ((1, 2, 3, 4, 5, 6, 7), {}, r"theirs\(\) takes from 2 to 6 positional arguments but 7 were given"),
    ],
)
def test_wrong_calls_are_flas_own_type_errors(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        by_name(theirs, lambda q, k: None)(*args, **kwargs)
    with pytest.raises(TypeError, match=message):
        theirs(*args, **kwargs)


def test_an_argument_that_fla_does_not_have():
    with pytest.raises(TypeError, match=r"plain\(\) got an unexpected keyword argument 'chunk_size'"):
        by_name(plain, lambda q, k: None)(1, 2, chunk_size=3)
    with pytest.raises(TypeError, match=r"plain\(\) got an unexpected keyword argument 'scales'"):
        by_name(plain, lambda q, k, scales=3: None)(1, 2, scales=3)


def test_options_that_a_cpu_does_not_have_are_refused_by_name():
    for original in (theirs, plain):
        bound = by_name(original, lambda q, k, scale: (q, k))
        assert bound(1, 2, cp_context=None) == (1, 2)
        for value in (object(), torch.ones(2)):
            with pytest.raises(ValueError, match=f"cp_context is set: {original.__name__} has it on a GPU only"):
                bound(1, 2, cp_context=value)
    bound = by_name(theirs, lambda q, k, scale, A_log=None: (q, k))
    with pytest.raises(ValueError, match="theirs got options that it does not have on a CPU: head_first, layout"):
        bound(1, 2, layout=1, A_log=2, head_first=True)
    with pytest.raises(ValueError, match="theirs has it on a GPU only; on a CPU leave it at 2"):
        bound(1, 2, sink=3)


def test_what_steers_a_kernel_is_ignored_unless_it_is_named():
    assert by_name(theirs, lambda q, k: (q, k))(1, 2, chunk_size=32, safe_gate=True) == (1, 2)
    assert by_name(theirs, lambda q, chunk_size: (q, chunk_size))(1, 2, chunk_size=32) == (1, 32)


def test_the_old_name_of_the_state_layout():
    def original(q, state_v_first=False, **kwargs):
        """FLA's function."""

    bound = by_name(original, lambda q, **options: options)
    assert bound(1, transpose_state_layout=True) == {"state_v_first": True}
    with pytest.raises(ValueError, match="does not have on a CPU: state_v_first"):
        by_name(theirs, lambda q, **options: options)(1, 2, transpose_state_layout=True)


def test_what_takes_all_keywords_is_called_as_it_is():
    def implementation(self, x, **kwargs):
        """A method, which looks for its own."""

    assert by_name(theirs, implementation) is implementation
    assert by_name(lambda *args, **kwargs: None, plain) is plain
