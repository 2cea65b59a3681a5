"""Every bad call is refused, on every backend, by a TypeError or ValueError that names what was wrong."""

import pytest

from tests import backends, bad_calls


def runs(backend):
    return [
        (f"{backend.name}-{call.name}", (backend, call)) for call in bad_calls.CALLS if bad_calls.runs_on(call, backend)
    ]


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::PendingDeprecationWarning"
)  # of nested tensors, numpy.matrix
def test_the_call_is_refused(run):
    backend, call = run
    if call.needs:
        pytest.importorskip(call.needs)
    with backends.settings(backend):
        assert not bad_calls.problems(call, backend)


def test_the_calls_are_named_once():
    names = [call.name for call in bad_calls.CALLS]
    assert len(names) == len(set(names)) >= 45


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {
                "arguments": lambda backend: (
                    bad_calls.CALLS[0].arguments(backend) | {"labels": 0, "logits": good_row(backend)}
                )
            },
            "returned",
        ),
        ({"exception": KeyError}, "raised ValueError, not KeyError"),
        ({"exception": Exception}, "raised ValueError, not Exception"),
        ({"words": lambda backend: ("labels", "purple")}, "does not say 'purple'"),
        ({"call": lambda backend, logits, labels: labels[5]}, "not by maskloss"),
    ],
    ids=["no error", "another error", "a broader error", "a word missing", "the framework's own error"],
)
def test_the_checker_can_fail(change, complaint):
    call = bad_calls.CALLS[0]
    backend = backends.BACKENDS["numpy"]
    assert not bad_calls.problems(call, backend)
    found = bad_calls.problems(call._replace(**change), backend)
    assert any(complaint in problem for problem in found), found


def good_row(backend):
    return bad_calls.given([0.5, 1.0, -2.0])(backend)
