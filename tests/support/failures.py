"""What a call refuses, in a form that two calls can be compared by."""


def failure(call, *args, **kwargs):
    """What a call raises, as type and text; None for a call that is accepted."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def assert_same_failure(ours, theirs, *args, **kwargs):
    expected = failure(theirs, *args, **kwargs)
    assert expected is not None
    assert failure(ours, *args, **kwargs) == expected
