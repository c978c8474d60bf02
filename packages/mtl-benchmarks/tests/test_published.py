import pytest

from mtl_benchmarks.published import PUBLISHED_METRICS, printed_baselines, published_table, published_values
from mtl_core import UnknownNameError


def test_all_values_are_there_and_directions_agree() -> None:
    rows = published_values()
    assert len(rows) == 1089
    for row in rows:
        for metric in PUBLISHED_METRICS.get(row.dataset, ()):
            if metric.name == row.metric:
                assert metric.higher_is_better is row.higher_is_better


def test_printed_baselines_have_name_unit_direction_and_source() -> None:
    values = [baseline.value for baseline in printed_baselines("NYUv2")]
    assert values == [38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15]
    first = printed_baselines("CityScapes")[0]
    assert (first.metric.name, first.metric.unit, first.metric.higher_is_better) == ("mIoU", "%", True)
    assert "MARIGOLD, Table 2" in first.source


def test_unknown_tables_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="COST Table 1 CityScapes"):
        published_table("COST", "Table 9", "CityScapes")
    with pytest.raises(UnknownNameError, match="NYUv2, CityScapes"):
        printed_baselines("ImageNet")
