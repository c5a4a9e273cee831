import pytest

from studies.choosing.collapse import Setting, build_model
from studies.choosing.runs import collapse_runs
from studies.choosing.variants import ESTIMATOR_VARIANTS, GROUPS, STARTS
from vqjax.estimators import ESTIMATORS
from vqjax.tasks.decoder_gradient import DECODER_GRADIENTS

VARIANTS = [(group, name) for group, variants in GROUPS.items() for name in variants]


@pytest.mark.parametrize(("group", "name"), VARIANTS)
def test_every_variant_constructs(group, name):
    assert build_model(GROUPS[group][name], Setting()).quantizer.num_codes == 512


def test_every_estimator_is_compared():
    assert set(ESTIMATOR_VARIANTS) >= {*ESTIMATORS, *DECODER_GRADIENTS}


def test_every_run_has_a_name_of_its_own():
    names = [run.name for run in collapse_runs(Setting(), seeds=2)]
    assert len(names) == len(set(names)) == 2 * len(STARTS) * len(VARIANTS)
