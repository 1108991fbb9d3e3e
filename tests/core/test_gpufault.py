"""What faults of GPUs mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.gpufault import (
    CURES,
    XIDS,
    Health,
    Verdict,
    Xid,
    faults,
    lasting_faults,
    merged,
    worst,
    xid_fault,
)


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((13, 31, 43), Verdict.RESTART),
        ((48, 63, 64, 74, 94, 95, 119), Verdict.RESET),
        ((79,), Verdict.REBOOT),
        ((45, 92, 154), Verdict.IGNORE),
        ((0, 999, 144), Verdict.IGNORE),
    ],
)
def test_classes_of_xid_errors(numbers: tuple[int, ...], verdict: Verdict) -> None:
    """Application errors restart, hardware errors quarantine, what is not known is only told."""
    assert {xid_fault(number).meaning.verdict for number in numbers} == {verdict}
    assert verdict.quarantines == (verdict in CURES)


def test_a_kill_of_ours_is_no_fault() -> None:
    """The driver reports Xid 45 for every process that dies by SIGKILL: a restart because of it would never end."""
    assert XIDS[45].verdict is Verdict.IGNORE


def test_each_event_is_taken_once() -> None:
    """A look shows the latest events again and again; a daemon that begins takes none of those before it."""
    first = Health(xids=(Xid(1, 31), Xid(2, 48)))
    assert faults(None, first) == []
    assert faults(first, first) == []
    later = replace(first, xids=(Xid(2, 48), Xid(3, 95), Xid(4, 777)))
    assert [fault.reason for fault in faults(first, later)] == [
        "Xid 95 (uncontained memory error)",
        "Xid 777 (not in the table of this version)",
    ]


def test_ecc_errors_count_from_the_first_look_and_through_silence() -> None:
    assert faults(None, Health(ecc_uncorrected=7)) == []
    silent = merged(Health(ecc_uncorrected=7), Health(lost=True))
    assert silent.ecc_uncorrected == 7
    (grown,) = faults(silent, Health(ecc_uncorrected=9))
    assert grown.reason == "uncorrectable ECC errors: 2 more, 9 since the driver was loaded"
    assert grown.meaning.computes
    assert faults(Health(ecc_uncorrected=9), Health(ecc_uncorrected=0)) == [], "the driver was loaded anew"
    assert faults(Health(), Health(ecc_uncorrected=3)) == [], "unknown is not zero"
    assert faults(Health(ecc_uncorrected=9), Health(ecc_uncorrected=9)) == [], "nothing new"


def test_what_lasts_is_told_at_the_first_look_and_when_it_comes_back() -> None:
    bad = Health(lost=True, remap_failed=True, recovery="drain_and_reset")
    assert set(lasting_faults(bad)) == {"lost", "remap_failed", "recovery:drain_and_reset"}
    assert {fault.lasting for fault in faults(None, bad)} == set(lasting_faults(bad))
    assert faults(bad, bad) == []
    assert faults(bad, Health()) == []
    assert len(faults(Health(), bad)) == 3
    assert lasting_faults(Health(recovery="none", remap_pending=True)) == {}


def test_the_fault_that_asks_for_most_decides() -> None:
    found = [xid_fault(31), xid_fault(63), xid_fault(119), xid_fault(45)]
    decides = worst(found)
    assert decides is not None
    assert decides.reason == "Xid 119 (GSP RPC timeout)", "of two resets the one that leaves nothing to drain"
    decides = worst([*found, xid_fault(79)])
    assert decides is not None
    assert decides.meaning.verdict is Verdict.REBOOT
    assert worst([]) is None


CATALOGUE = {
    Verdict.RESTART: {8, 11, 13, 25, 31, 32, 39, 40, 41, 68, 69, 80, 94},
    Verdict.IGNORE: {37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 121, 137, 141, 154},
    Verdict.RESET: {46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158},
    Verdict.REBOOT: {79, 151},
}
"""Resolution buckets of NVIDIA's catalogue (RESTART_APP, IGNORE, RESET_GPU and the workflows that end in it, RESTART_BM and
RESTART_VM), of the Xids that GPUs of today raise."""
STRICTER = {43: Verdict.RESTART, 63: Verdict.RESET, 94: Verdict.RESET}
"""The context is gone; the remapping takes effect with a reset; the page stays out of use until one."""


@pytest.mark.parametrize("bucket", CATALOGUE)
def test_xids_mean_what_nvidia_says_or_more(bucket: Verdict) -> None:
    for number in CATALOGUE[bucket]:
        assert xid_fault(number).meaning.verdict is STRICTER.get(number, bucket), number
        assert f"Xid {number} (" in xid_fault(number).reason
    assert set(XIDS) == set().union(*CATALOGUE.values())


def test_a_gpu_that_computes_on_is_drained_and_one_that_does_not_is_given_up() -> None:
    """Rows of memory, links, and resources that are taken out of use: what runs is whole, and streams may end."""
    assert {number for number in XIDS if xid_fault(number).meaning.computes} == {
        63,
        64,
        74,
        94,
        136,
        155,
        156,
    }
    lasting = {
        name: fault.meaning for name, fault in lasting_faults(Health(lost=True, remap_failed=True)).items()
    }
    assert not lasting["lost"].computes
    assert lasting["remap_failed"].computes
    assert (lasting["lost"].verdict, lasting["remap_failed"].verdict) == (Verdict.REBOOT, Verdict.INSPECT)


@pytest.mark.parametrize(
    ("word", "verdict", "computes"),
    [
        ("reset", Verdict.RESET, False),
        ("drain_and_reset", Verdict.RESET, True),
        ("drain_p2p", Verdict.RESET, True),
        ("bus_reset", Verdict.RESET, False),
        ("reboot", Verdict.REBOOT, False),
    ],
)
def test_what_the_driver_asks_for_is_done(word: str, verdict: Verdict, computes: bool) -> None:
    (fault,) = faults(Health(recovery="none"), Health(recovery=word))
    assert (fault.meaning.verdict, fault.meaning.computes, fault.lasting) == (
        verdict,
        computes,
        f"recovery:{word}",
    )
    assert "the driver asks" in fault.reason


def test_the_first_error_and_the_first_event_of_a_gpu_count() -> None:
    (first,) = faults(Health(ecc_uncorrected=0), Health(ecc_uncorrected=1))
    assert first.reason == "uncorrectable ECC errors: 1 more, 1 since the driver was loaded"
    assert faults(Health(ecc_uncorrected=0), Health(ecc_uncorrected=0)) == []
    assert [fault.reason for fault in faults(Health(), Health(xids=(Xid(1, 79),)))] == [
        "Xid 79 (GPU has fallen off the bus)"
    ]


def test_what_a_look_does_not_tell_is_as_it_was() -> None:
    before = Health(False, 3, True, True, "reset", (Xid(1, 31),))
    now = Health(True, 4, False, False, "none", (Xid(2, 48),))
    assert merged(before, Health(lost=True)) == replace(before, lost=True)
    assert merged(before, now) == now
    assert merged(None, now) == now


looks = st.builds(
    Health,
    lost=st.booleans(),
    ecc_uncorrected=st.none() | st.integers(0, 5),
    remap_failed=st.none() | st.booleans(),
    remap_pending=st.none() | st.booleans(),
    recovery=st.sampled_from([None, "none", "reset", "reboot", "word of a later driver"]),
)


@given(st.lists(looks, max_size=12), st.lists(st.integers(1, 180), max_size=12))
def test_no_event_is_lost_or_doubled_whatever_else_a_look_tells(
    seen: list[Health], numbers: list[int]
) -> None:
    """Every Xid after the first look is told once, in order, though each look shows the last three again."""
    before: Health | None = None
    told: list[str] = []
    for n, look in enumerate(seen, 1):
        events = tuple(Xid(seq, number) for seq, number in enumerate(numbers[:n], 1))[-3:]
        now = replace(look, xids=events)
        told += [fault.reason for fault in faults(before, now) if fault.reason.startswith("Xid")]
        before = merged(before, now)
    expected = numbers[1 : len(seen)] if seen else []
    assert told == [xid_fault(number).reason for number in expected]
