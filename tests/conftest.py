import pytest


@pytest.fixture(params=[False, True], ids=["plain", "holed"])
def toy(request):
    from tests import toy_world  # only the tests that use it pay for torch

    return toy_world.build(holed=request.param)
