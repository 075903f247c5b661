"""The record contract as a Great Expectations suite: its report for people, as Data Docs.

Judges a seeded sample of described rows and the figures of each batch, by the rules that records.py
applies to every row; where the two disagree about a row, that is an error.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.contracts import IntakeEvidence, Rejection
from core.errors import IntegrityError
from validation.records import RecordContract, Rule, rules

SAMPLE, BATCHES = "sampled rows", "batches"
FOLDER = "contract"
INDEX = "index.html"
BROKEN_SHARE_MAX = 0.1
"""From this share of a batch on a broken rule stands out in the report."""


@dataclass(frozen=True, slots=True)
class ContractReport:
    """Where the report is, and what the suite found. `succeeded` judges the batches' figures."""

    path: Path
    sampled: int
    sampled_refused: int
    succeeded: bool


def write_contract_report(
    evidence: IntakeEvidence, folder: Path, contract: RecordContract | None = None
) -> ContractReport:
    """Run the suite on what an intake left as evidence and write its Data Docs below `folder`.

    Raises IntegrityError when the suite refuses other rows of the sample than the intake did.
    """
    contract = contract or RecordContract()
    site = folder / FOLDER
    shutil.rmtree(site, ignore_errors=True)
    context = _context(site)
    found: list[Rejection] = []
    if evidence.sample:
        columns = {name: [row[name] for row in evidence.sample] for name in evidence.sample[0]}
        found = _rejections(_run(context, SAMPLE, columns, rules(contract)).results)
        told = {index: row["reason"] for index, row in enumerate(evidence.sample) if row["reason"]}
        if {item.index: item.reason for item in found} != told:
            raise IntegrityError(
                f"the record contract and its suite disagree about rows of the sample; see {site}"
            )
    figures = [_figures(batch, contract) for batch in evidence.batches]
    columns = {name: [row[name] for row in figures] for name in figures[0]} if figures else {}
    outcome = _run(context, BATCHES, columns, _batch_rules(contract)) if figures else None
    context.build_data_docs()
    return ContractReport(
        path=site / INDEX,
        sampled=len(evidence.sample),
        sampled_refused=len(found),
        succeeded=outcome is None or bool(outcome.success),
    )


def suite_rejections(
    columns: Mapping[str, Sequence[Any]], contract: RecordContract
) -> list[Rejection]:
    """Return the described rows that the suite refuses, as records.judge does."""
    return _rejections(_run(_context(None), SAMPLE, columns, rules(contract)).results)


def _figures(batch: Mapping[str, Any], contract: RecordContract) -> dict[str, float]:
    rows = max(1, int(batch["rows"]))
    broken: dict[str, int] = batch["reasons"]
    shares = {rule.reason: broken.get(rule.reason, 0) / rows for rule in rules(contract)}
    return {"rows": float(batch["rows"]), "refused": batch["refused"] / rows, **shares}


def _batch_rules(contract: RecordContract) -> list[Rule]:
    shares = ["refused", *(rule.reason for rule in rules(contract))]
    return [
        Rule("rows", "the batch is empty", "between", low=1),
        *(Rule(name, f"many rows: {name}", "between", high=BROKEN_SHARE_MAX) for name in shares),
    ]


def _rejections(results: Iterable[Any]) -> list[Rejection]:
    reasons: dict[int, list[str]] = {}
    for found in results:
        exception = found.exception_info or {}
        if exception.get("raised_exception"):
            raise RuntimeError(f"the contract's suite failed: {exception['exception_message']}")
        for index in found.result.get("unexpected_index_list") or ():
            reasons.setdefault(int(index), []).append(found.expectation_config.meta["reason"])
    return [Rejection(index, "; ".join(reasons[index])) for index in sorted(reasons)]


def _context(site: Path | None) -> Any:
    """Return a context of its own, whose Data Docs go to `site`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name in list(context.list_data_docs_sites()):
        context.delete_data_docs_site(name)
    if site is not None:
        context.add_data_docs_site(
            site_name="contract",
            site_config={
                "class_name": "SiteBuilder",
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(site),
                },
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
    return context


def _run(
    context: Any, name: str, columns: Mapping[str, Sequence[Any]], wanted: Iterable[Rule]
) -> Any:
    """Validate columns by rules and return the suite's result, which the Data Docs show."""
    import great_expectations as gx
    import pandas as pd

    wanted = list(wanted)
    sizes = {rule.column for rule in wanted if rule.kind == "between"}
    frame = pd.DataFrame(
        {
            # A column without any value would be typed `object`, which cannot be compared.
            column: pd.Series(values, dtype="float64" if column in sizes else "object")
            for column, values in columns.items()
        }
    )
    batch = (
        context.data_sources.add_pandas(name)
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe(name)
    )
    suite = gx.ExpectationSuite(name=name)
    for rule in wanted:
        suite.add_expectation(_expectation(rule))
    suite = context.suites.add(suite)
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = gx.Checkpoint(
        name=name, validation_definitions=[definition], result_format={"result_format": "COMPLETE"}
    )
    outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    return next(iter(outcome.run_results.values()))


def _expectation(rule: Rule) -> Any:
    import great_expectations.expectations as gxe

    meta = {"reason": rule.reason}
    if rule.kind == "in":
        return gxe.ExpectColumnValuesToBeInSet(
            column=rule.column, value_set=list(rule.values), meta=meta
        )
    return gxe.ExpectColumnValuesToBeBetween(
        column=rule.column, min_value=rule.low, max_value=rule.high, meta=meta
    )
