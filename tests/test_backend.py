"""What is set before JAX computes: XLA's flags, and the folder of compiled programs."""

import pathlib

import jax
import pytest

from pixelflow_jax import backend

TRITON = "--xla_gpu_enable_triton_gemm"


@pytest.fixture
def flags(monkeypatch):
    """What `configure` makes of the variables, from what the user has set."""
    monkeypatch.setattr(backend, "_hush", lambda: None)

    def configured(**given: str) -> dict[str, str]:
        for variable in backend.VARIABLES.values():
            monkeypatch.setenv(variable, given.get(variable, ""))
        backend.configure()
        return {name: backend.os.environ[name] for name in backend.VARIABLES.values()}

    return configured


def test_flags_are_added_and_the_users_are_kept(flags):
    merger = "--xla_gpu_dot_merger_threshold_mb=0"
    assert flags()["XLA_FLAGS"] == f"{TRITON}=false {merger}"
    given = f"{TRITON}=true --x=1"
    assert flags(XLA_FLAGS=given)["XLA_FLAGS"] == f"{given} {merger}"
    # A longer name is another flag.
    longer = f"{TRITON}_any=true"
    expected = f"{longer} {TRITON}=false {merger}"
    assert flags(XLA_FLAGS=longer)["XLA_FLAGS"] == expected


def test_flags_of_the_tpu_go_to_libtpu(flags, monkeypatch):
    monkeypatch.setitem(backend.FLAGS, "tpu", {"--xla_tpu_x": "1"})
    found = flags(LIBTPU_INIT_ARGS="--y=2")
    assert found["LIBTPU_INIT_ARGS"] == "--y=2 --xla_tpu_x=1"
    assert "tpu" not in found["XLA_FLAGS"]


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The folder that JAX is given on a backend, from these variables."""
    before = jax.config.jax_compilation_cache_dir

    def folder(platform: str = "gpu", jax_folder: str | None = None, **given) -> str:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in (backend.CACHE, "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(given.get(name, "")))
        jax.config.update("jax_compilation_cache_dir", jax_folder)
        backend.keep_programs()
        return jax.config.jax_compilation_cache_dir

    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
    backend.compilation_cache.reset_cache()


def test_programs_are_kept_in_the_users_cache(kept, tmp_path):
    assert kept() == str(tmp_path / ".cache" / "pixelflow_jax" / "programs")
    assert kept(XDG_CACHE_HOME=tmp_path / "x") == str(
        tmp_path / "x" / "pixelflow_jax" / "programs"
    )
    assert pathlib.Path(kept("tpu")).is_dir()


def test_programs_of_each_kind_of_cpu_lie_apart(kept, tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    monkeypatch.setattr(backend, "CPU_FACTS", facts)
    folders = []
    for flags in ("flags : avx2 fma", "flags : avx2 fma avx512f", "Features : asimd"):
        facts.write_text(f"processor : 0\n{flags}\nprocessor : 1\n{flags}\n")
        folders.append(kept("cpu", **{backend.CACHE: tmp_path / "named"}))
    assert len(set(folders)) == 3
    assert all(folder.startswith(str(tmp_path / "named/cpu-")) for folder in folders)
    # Clocks differ from one look to the next, and say nothing.
    facts.write_text("cpu MHz : 2300.1\nflags : avx2 fma\n")
    assert kept("cpu", **{backend.CACHE: tmp_path / "named"}) == folders[0]


def test_programs_of_a_cpu_of_unknown_kind_are_not_kept(kept, tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    monkeypatch.setattr(backend, "CPU_FACTS", facts)
    assert kept("cpu") is None
    facts.write_text("processor : 0\n")
    assert kept("cpu") is None


def test_the_users_choice_of_folder_comes_first(kept, tmp_path):
    theirs = str(tmp_path / "theirs")
    assert kept(jax_folder=theirs) == theirs
    assert kept(jax_folder=theirs, **{backend.CACHE: "off"}) == theirs
    assert kept(**{backend.CACHE: "off"}) is None
    named = {backend.CACHE: tmp_path / "named"}
    assert kept(jax_folder=theirs, **named) == str(tmp_path / "named")
    assert kept(**{backend.CACHE: "~/named"}) == str(tmp_path / "named")
    assert not (tmp_path / ".cache").exists()


def test_a_folder_that_cannot_be_written_is_a_warning(kept, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert kept(**{backend.CACHE: tmp_path / "file" / "deep"}) is None
    (warning,) = caplog.records
    assert "are not kept" in warning.message and backend.CACHE in warning.message


def test_what_was_kept_is_found_by_the_next_process(kept, tmp_path):
    """Here by the same one, which has forgotten everything, after it had compiled."""
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    folder = pathlib.Path(kept())
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        jax.jit(lambda x: 3 * x)(1.0)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert any(folder.iterdir())


def test_samplers_are_launched_as_loops_on_gpus_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert backend.loop_options() == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ((name, commands),) = backend.loop_options().items()
    assert name == "xla_gpu_enable_command_buffer" and "WHILE" in commands.split(",")
    # This XLA knows the option and all of its words.
    jax.jit(lambda a: a + 1, compiler_options={name: commands}).lower(1.0).compile()
    monkeypatch.setenv("XLA_FLAGS", f"{backend.COMMAND_BUFFER}=FUSION")
    assert backend.loop_options() == {}
