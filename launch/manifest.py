"""A Kubernetes manifest as a Python mapping: fields looked up with their paths, so that a mistake names its field; read
from a file and written as YAML. Standard library only, Python 3.8 or newer; knows no rule of any kind of object but the
names of its fields.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    Found = Iterator[tuple[str, str]]  # a field and what is wrong with it

NAME = 63  # characters of a name or label value
WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

FIELDS = {
    "manifest": "apiVersion kind metadata spec status",
    "spec": "coordinator failurePolicy managedBy network replicatedJobs startupPolicy successPolicy suspend "
    "ttlSecondsAfterFinished volumeClaimPolicies",
    "replicatedJob": "dependsOn groupName name replicas template",
    "network": "enableDNSHostnames publishNotReadyAddresses subdomain",
    "coordinator": "jobIndex podIndex replicatedJob",
    "failurePolicy": "maxRestarts restartStrategy rules",
    "rule": "action name onJobFailureMessagePatterns onJobFailureReasons targetReplicatedJobs",
    "job": "activeDeadlineSeconds backoffLimit backoffLimitPerIndex completionMode completions managedBy "
    "manualSelector maxFailedIndexes parallelism podFailurePolicy podReplacementPolicy selector successPolicy suspend "
    "template ttlSecondsAfterFinished",
    "pod": "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy "
    "enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname "
    "imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName "
    "readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates "
    "securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
    "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes",
    "container": "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe "
    "resizePolicy resources restartPolicy securityContext startupProbe stdin stdinOnce terminationMessagePath "
    "terminationMessagePolicy tty volumeDevices volumeMounts workingDir",
}
KINDS = {dict: "a mapping", list: "a list", str: "a text: quote it", int: "a whole number", bool: "true or false"}


class WrongKind(Exception):
    """A field of a kind that leaves nothing to check in it."""


class Node:
    """A mapping of the manifest and the path to it."""

    def __init__(self, value: Any, path: str, what: str = ""):
        if not isinstance(value, dict):
            raise WrongKind(f"{path or 'manifest'}: {value!r} is not {KINDS[dict]}")
        self.value, self.path, self.what = value, path, what

    def at(self, key: str) -> str:
        bracket = "/" in key
        return f"{self.path}[{key}]" if bracket else f"{self.path}.{key}" if self.path else key

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A field of this kind; null is as good as missing."""
        found = self.value.get(key)
        if found is None:
            return default
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise WrongKind(f"{self.at(key)}: {found!r} is not {KINDS[kind]}")
        return found

    def node(self, key: str, what: str = "") -> Node:
        return Node(self.get(key, dict, {}), self.at(key), what)

    def nodes(self, key: str, what: str = "") -> list[Node]:
        return [Node(each, f"{self.at(key)}[{i}]", what) for i, each in enumerate(self.get(key, list, []))]

    def unknown(self) -> Found:
        known = FIELDS[self.what].split()
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                yield self.at(str(key)), "no such field" + (f"; did you mean {near[0]}?" if near else "")

    def expect(self, key: str, allowed: Iterable[Any], why: str = "") -> Found:
        """A problem if the field is none of ``allowed``."""
        found, allowed = self.value.get(key), list(allowed)
        if found not in allowed:
            yield self.at(key), f"{found!r}, must be {' or '.join(map(str, allowed))}" + (f": {why}" if why else "")

    def named(self, longest: int = NAME) -> Found:
        name = self.value.get("name")
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", str(name or "")):
            yield self.at("name"), f"{name!r}: small letters, digits and -, a letter first, no - at the end"
        elif len(str(name)) > longest:
            yield self.at("name"), f"{name!r} has {len(str(name))} characters, at most {longest}"

    def labels(self) -> Found:
        """Problems of a mapping of labels."""
        for key, value in self.value.items():
            where, name = f"{self.path}[{key}]", str(key).rpartition("/")[2]
            if not re.fullmatch(WORD, name):
                yield where, "a key is PREFIX/NAME of letters, digits, -, _ and ."
            if not isinstance(value, str):
                yield where, f"{value!r} is not {KINDS[str]}"
            elif value and not re.fullmatch(WORD, value):
                yield where, f"{value!r}: at most 63 letters, digits, -, _ and ., a letter or digit at both ends"


def twice(nodes: Iterable[Node], key: str = "name") -> Found:
    seen: dict[str, str] = {}
    for node in nodes:
        value = repr(node.value.get(key))
        if seen.setdefault(value, node.at(key)) != node.at(key):
            yield node.at(key), f"{value} is there twice: also in {seen[value]}"


def whole(node: Node, key: str, default: int, least: int) -> Found:
    if node.get(key, int, default) < least:
        yield node.at(key), f"{node.value[key]}, must be {least} or more"


# Texts that YAML reads as texts without quotes, but for WORDS; and lines that a block of text keeps as they are.
PLAIN = re.compile(r"[A-Za-z/_][\w./-]*( [\w./=-]+)*", re.ASCII)
WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
BLOCK = re.compile(r"[!-~]([ -~]*[!-~])?(\n[!-~]([ -~]*[!-~])?)+")


def to_yaml(value: Any, indent: str = "") -> str:
    """A manifest (mappings, lists, texts, whole numbers, booleans) as YAML."""
    if isinstance(value, dict) and value:
        return "\n".join(f"{indent}{to_yaml(key)}:{_below(each, indent + '  ')}" for key, each in value.items())
    if isinstance(value, list) and value:  # the first line of an item stands behind its dash
        return "\n".join(f"{indent}- {to_yaml(each, indent + '  ').lstrip(' ')}" for each in value)
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    if isinstance(value, str) and indent and BLOCK.fullmatch(value):
        return "\n".join(["|-", *(indent + line for line in value.split("\n"))])
    if isinstance(value, str):
        return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'
    return json.dumps(value)


def _below(value: Any, indent: str) -> str:
    nested = isinstance(value, (dict, list)) and len(value) > 0
    return ("\n" if nested else " ") + to_yaml(value, indent)


def read(path: str) -> Any:
    """The manifest in a file: JSON, or YAML where PyYAML is installed.

    Raises:
      OSError: it cannot be read.
      ValueError: it is neither, or PyYAML is not installed.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        return json.loads(text)
    except ValueError:
        try:
            import yaml  # pyright: ignore[reportMissingModuleSource]: optional
        except ImportError:
            raise ValueError(f"{path}: not JSON, and YAML is read with PyYAML only: pip install pyyaml") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: neither JSON nor YAML: {' '.join(str(error).split())}") from None
