"""What a stranger's checkpoint, data, template or names can do, and where secrets end up."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from surroundings import PLAIN, QUICKSTART, Run, write_pairs

from orpo_lightning import PreferenceModule, cli
from orpo_lightning.checkpoint_files import read_checkpoint
from orpo_lightning.checkpoint_io import IntactCheckpointIO
from orpo_lightning.data import template_limit
from orpo_lightning.errors import CheckpointError


class Evil:
    """A pickle that makes a folder where it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


# Checkpoints


@pytest.mark.parametrize("key", ["state_dict", "hyper_parameters"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_executed(run: Run, key: str) -> None:
    torch.save({"state_dict": {}, key: {"x": Evil()}}, "evil.ckpt")
    done = run.fit(resume="evil.ckpt")
    assert done.code == 4
    assert "evil.ckpt is damaged" in done.line
    assert not Path("executed").exists()
    torch.load("evil.ckpt", weights_only=False)
    assert Path("executed").exists()  # it would have been seen


def test_no_flag_and_no_argument_lets_the_code_in_a_checkpoint_run(run: Run) -> None:
    torch.save({"state_dict": {"x": Evil()}}, "evil.ckpt")
    for words in (["--weights_only", "false"], ["--weights_only=false"], ["--ckpt_path", "evil.ckpt"]):
        done = run.fit(*words, resume="evil.ckpt")
        assert done.code == 2
        assert "unknown key" in done.line
    with pytest.raises(CheckpointError):
        IntactCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not Path("executed").exists()


# Secrets

SECRETS = {
    "api_key": "key-of-a-logger-8f31",
    "password": "pw-in-a-url-77c2",
    "hub_token": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "secret": "secret-of-a-module-19d4",
}


class WithSecrets(PreferenceModule):
    """A user's module with a token among its arguments."""

    def __init__(self, hub_token: str = "", client_secret: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("hub_token", "client_secret")

    def describe(self) -> list[tuple[str, str]]:
        return [*super().describe(), ("uploads with", f"https://user:{SECRETS['password']}@hub.example/x")]


LOGGERS = f"""
trainer:
  logger:
  - class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: run, name: '', version: tb}}
  - class_path: surroundings.KeyLogger
    init_args:
      save_dir: run/csv
      api_key: {SECRETS["api_key"]}
      endpoint: https://user:{SECRETS["password"]}@logs.example/api
model:
  hub_token: {SECRETS["hub_token"]}
  client_secret: {SECRETS["secret"]}
"""


def test_secrets_are_in_no_file_that_a_run_leaves_and_on_no_terminal(run: Run) -> None:
    Path("secret.yaml").write_text(LOGGERS)
    plain = {name: value for name, value in PLAIN.items() if name != "trainer.logger"}
    values = {**plain, "model.base_model": run.base, "data.train": run.train}
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    run.capsys.readouterr()
    assert cli.main(["fit", "-c", str(QUICKSTART), "-c", "secret.yaml", *words], WithSecrets) == 0
    printed = run.capsys.readouterr()
    texts = {path: path.read_bytes().decode("latin-1") for path in Path("run").rglob("*") if path.is_file()}
    assert {"config.yaml", "log", "last.ckpt", "README.md", "hparams.yaml"} <= {path.name for path in texts}
    for name, secret in SECRETS.items():
        assert secret not in printed.out + printed.err, name
        assert [str(path) for path, text in texts.items() if secret in text] == [], name
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["trainer"]["logger"][1]["init_args"]["api_key"] == "***"
    assert config["trainer"]["logger"][1]["init_args"]["endpoint"] == "https://***@logs.example/api"
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["hyper_parameters"]["hub_token"] == "***"
    resumed = [*words, "--resume", "auto", "--trainer.max_steps", "3"]
    assert cli.main(["fit", "-c", str(QUICKSTART), "-c", "secret.yaml", *resumed], WithSecrets) == 0


@pytest.mark.parametrize("flag", ["--model.hub_token=hf_Secret12345678901", "--data.api_key=abc-secret-def"])
def test_an_error_about_a_secret_does_not_show_it(run: Run, flag: str) -> None:
    done = run.fit(flag)
    assert done.code == 2
    assert "unknown key" in done.line
    assert "ecret" not in done.line


def test_an_inspection_report_does_not_show_secrets_of_its_command_line(run: Run) -> None:
    words = ["--trainer.logger=surroundings.KeyLogger", "--trainer.logger.api_key", "abc-secret-def"]
    words += ["--trainer.logger.save_dir=x", "--trainer.logger.endpoint=y", "--data.tokenizer", run.base]
    words += ["--data.validation", "null", "--data.test", "null", "--data.cache_dir", "cache"]
    done = run("inspect", "-c", QUICKSTART, "--data.train", run.train, *words, "--out", "report")
    assert done.code == 0, done.err
    for name in ("report.html", "report.json"):
        assert "abc-secret-def" not in Path("report", name).read_text()
    assert "--trainer.logger.api_key ***" in Path("report", "report.json").read_text()


# Names and texts of strangers

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Collects what is not text on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile_pairs() -> list[dict[str, str]]:
    return [
        {
            "prompt": f"{SCRIPT} {n}",
            "chosen": f" {SCRIPT} yes {n}",
            "rejected": f" ../../../evil {SCRIPT} {n}",
        }
        for n in range(12)
    ]


def test_a_page_shows_scripts_of_data_and_file_names_as_text(run: Run) -> None:
    file = write_pairs(Path("<img src=x onerror=alert(3)>.jsonl"), hostile_pairs())
    words = ["--data.tokenizer", run.base, "--data.validation", "null", "--data.test", "null"]
    done = run(
        "inspect", "-c", QUICKSTART, "--data.train", file, *words, "--data.cache_dir", "cache", "--out", "r"
    )
    assert done.code == 0, done.err
    page = Elements()
    text = Path("r/report.html").read_text()
    page.feed(text)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "&lt;img src=x onerror=alert(3)&gt;.jsonl" in text


def test_a_model_card_shows_what_models_and_metrics_are_called_as_text(run: Run, tmp_path: Path) -> None:
    base = tmp_path / "<img src=x onerror=alert(1)> | `x` **b**\nlicense: mit"
    base.symlink_to(run.base)
    assert run.fit(model__base_model=base).code == 0
    card = Path("run/adapter/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == str(base)
    assert "license" not in yaml.safe_load(front)
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert "<img" not in prose
    assert "&lt;img src=x" in prose
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert not re.search(r"(?<!\\)\*\*b", prose)


def test_names_in_data_and_metrics_never_become_paths(run: Run, tmp_path: Path) -> None:
    class Named(PreferenceModule):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            self.log("train/../../../evil/metric", 1.0)

    rows = [{**row, "../../evil": "x", "source": "../../evil"} for row in hostile_pairs()]
    train = write_pairs(tmp_path / "rows.jsonl", rows)
    before = set(tmp_path.parent.glob("*"))
    values = {**PLAIN, "model.base_model": run.base, "data.train": train, "trainer.logger": "true"}
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    assert cli.main(["fit", "-c", str(QUICKSTART), *words, "--run_dir", "in/run"], Named) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "pairs.jsonl", "in", "cache"}
    assert set(tmp_path.parent.glob("*")) == before
    assert {path.name for path in Path("in").iterdir()} == {"run"}
    assert not [path for path in tmp_path.rglob("*evil*")]


# Chat templates


def chats(tmp_path: Path) -> Path:
    def turns(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    rows = [
        {
            "prompt": turns("user", f"q {n}"),
            "chosen": turns("assistant", "a"),
            "rejected": turns("assistant", "b"),
        }
        for n in range(3)
    ]
    return write_pairs(tmp_path / "chats.jsonl", rows)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__.os.mkdir('executed')",
        "lipsum.__globals__['os'].mkdir('executed')",
    ],
)
def test_a_template_that_reaches_for_python_is_refused_and_does_nothing(
    run: Run, tmp_path: Path, expression: str
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ " + expression + " }}"
    done = run.fit(data__train=chats(tmp_path), data__chat_template=template)
    assert done.code == 3
    assert "chats.jsonl:1: the chat template cannot render this row: " in done.line
    assert not Path("executed").exists()


HUGE = "range(100000)"
ENDLESS = {
    "for one row only": "{% if messages[0].content == 'q 1' %}{% for a in R %}{% for b in R %}{% endfor %}"
    "{% endfor %}{% endif %}",
    "loops in loops": "{% for a in R %}{% for b in R %}{% for c in R %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop with a condition": "{% for a in R %}{% for b in R if b < 0 %}{% endfor %}{% endfor %}",
    "macros in macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(30) }}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{% for c in R %}{% endfor %}{% if loop.depth < 99 %}"
    "{{ loop([1, 2]) }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_never_ends_is_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(template_limit, "SECONDS", 0.3)
    template = ENDLESS[name].replace("R", HUGE) + "{% for m in messages %}{{ m.content }}{% endfor %}"
    done = run.fit(data__train=chats(tmp_path), data__chat_template=template)
    assert done.code == 2
    assert "data.chat_template: a row was not rendered within 0.3 s" in done.line


def test_a_template_that_is_watched_writes_what_it_would_unwatched() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = (
        "{% macro show(m, mark='-') %}{{ mark }}{{ m.content }}{% endmacro %}"
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}"
        "{{ loop.nextitem is defined }}{{ loop.previtem is defined }}{{ loop.cycle('a', 'b') }}"
        "{{ show(m) }}\n"
        "{% else %}none{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ loop.revindex }}{{ m.content }}{% endfor %}"
        "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}"
        "{% for letter in 'abc' %}{{ letter }}{% if letter == 'b' %}{% break %}{% endif %}{% endfor %}"
        "{% for item in missing %}{{ item }}{% else %}nothing{% endfor %}"
        "{{ messages.__class__ }}{{ raise_exception.__globals__ }}"
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    )
    turns = [
        {"role": role, "content": f"<{n}>"} for n, role in enumerate(("system", "user", "assistant", "user"))
    ]
    plain = _compile_jinja_template(template)
    limit = template_limit.TimeLimit()
    watched = limit.watched(template, plain.environment)
    limit.begin()
    for messages in (turns, turns[:1]):
        assert watched.render(messages=messages) == plain.render(messages=messages)
