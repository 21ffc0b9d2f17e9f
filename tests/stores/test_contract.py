"""What every store has to do, run over each of them."""

from pathlib import Path

import pytest
from cases import directory_case, memory_case

from asgi_session_pin.testing import CHECKS, CLAIM_CHECKS, SHARED_CHECKS, Check


def name_of(check: Check) -> str:
    return check.__name__


every_check = pytest.mark.parametrize("check", CHECKS, ids=name_of)
every_check_of_shared_stores = pytest.mark.parametrize("check", CHECKS + SHARED_CHECKS + CLAIM_CHECKS, ids=name_of)


@every_check
async def test_the_memory_store_keeps_the_contract(check: Check) -> None:
    await check(memory_case())


@every_check_of_shared_stores
async def test_the_example_of_an_own_store_keeps_the_contract(check: Check, tmp_path: Path) -> None:
    await check(directory_case(tmp_path))
