"""Where a model's time goes and what keeps it from the machine's peak.

`python -m benchmarks.checks.profile --bundle B --threads 1 --out O` asks OpenVINO's per-layer counters, groups the
layers, and compares the convolutions with the peak that `runtime.timing.roofline` measures on the spot.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from benchmarks.measuring import check_libraries, results_folder
from segcore.command import Settings, log, print_result, run_command


class ProfileSettings(Settings):
    """Shows where the time of exported bundles goes, layer by layer, against the peak of this machine.

    Writes layers.csv, profile.md and profile.png. OpenVINO alone has the counters, so the bundles must open in it.
    """

    bundle: tuple[Path, ...] = Field(min_length=1)
    """An exported bundle; give the flag once for each."""
    out: Path
    """New folder."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    seconds: float = Field(4.0, gt=0)
    """Time to measure each bundle, and once more the peaks."""
    overwrite: bool = False
    """Replace a finished --out."""


def main(settings: ProfileSettings) -> None:
    """Measures, writes the folder, prints a table a bundle and one JSON line."""
    from benchmarks.checks.layers import profile_model
    from benchmarks.checks.profile_text import Profiled, describe, kind_table, sentences, write_layers
    from benchmarks.report.subject import name_subjects, open_bundles
    from runtime.engines.seam import choose_engine
    from runtime.timing.roofline import measure_roofline
    from segcore.bundle.golden import golden_inputs
    from segcore.host import describe_host

    check_libraries("matplotlib")
    from benchmarks.checks.profile_plot import draw_profiles

    bundles = open_bundles(settings.bundle)
    engines = [choose_engine(b.manifest, "openvino", name=str(b.folder)) for b in bundles]
    subjects = name_subjects(list(zip(bundles, engines, strict=True)))
    with results_folder(settings, {"command": "benchmarks.checks.profile"}) as folder:
        log("measuring the peaks")
        roofline = measure_roofline("openvino", settings.threads, seconds=settings.seconds)
        found = []
        for subject in subjects:
            log(f"profiling {subject.name}")
            picture = golden_inputs(subject.manifest.input)[:1]
            path = subject.bundle.model_path
            profile = profile_model(path, picture, threads=settings.threads, seconds=settings.seconds)
            found.append(Profiled(subject.name, subject.manifest.precision, profile, roofline))
        write_layers(folder / "layers.csv", found)
        (folder / "profile.md").write_text(describe(found, host=describe_host()))
        draw_profiles(found, folder / "profile.png")
    for one in found:
        table = kind_table(one)
        print(f"{table.title}\n{table.plain()}")
        print("\n".join(sentences(one)) + "\n")
    print_result(
        profile=str(settings.out / "profile.md"),
        peaks={"int8_gmac_s": roofline.int8_gmac_s, "fp32_gmac_s": roofline.fp32_gmac_s},
        models=[
            {
                "name": one.name,
                "latency_ms": one.profile.latency_ms,
                "convolution_share": one.convolution_share,
                "convolution_share_of_peak": one.share_of_peak,
            }
            for one in found
        ],
    )


if __name__ == "__main__":
    run_command(main, ProfileSettings, "python -m benchmarks.checks.profile")
