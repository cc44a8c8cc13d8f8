"""What pods have mounted, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reading import Manifest, cluster_of, clusters, groups, head, of_kind

CLAIM = "persistentVolumeClaim"


def mounts(spec: Manifest, kind: str) -> dict[str, Manifest]:
    """Where the first container has volumes of a kind."""
    volumes = {each["name"]: each[kind] for each in spec.get("volumes", []) if kind in each}
    mounts = spec["containers"][0].get("volumeMounts", [])
    return {each["mountPath"]: volumes[each["name"]] for each in mounts if each["name"] in volumes}


def lasting(job: Manifest) -> list[str]:
    """Folders of the driver that outlive its pod."""
    return list(mounts(head(job), CLAIM))


def mounted_files(job: Manifest, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Files of ConfigMaps that the driver sees, by their path, and what is in them."""
    data = {each["metadata"]["name"]: each["data"] for each in of_kind(manifests, "ConfigMap")}
    return {
        f"{at}/{file}": text
        for at, own in mounts(head(job), "configMap").items()
        for file, text in data.get(own["name"], {}).items()
    }


def is_mounted_everywhere(manifests: Sequence[Manifest], storage: str) -> bool:
    """Whether head and trainers have a claim there; servers read no checkpoints."""
    specs = [
        group["template"]["spec"]
        for _, cluster in clusters(manifests)
        for group in groups(cluster)
        if group.get("groupName") != "teachers"
    ]
    return all(any(storage.startswith(f"{at}/") for at in mounts(spec, CLAIM)) for spec in specs)


def claimants(manifests: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """Every claim that a group of pods names, with the group's place."""
    for owner in of_kind(manifests, "RayCluster", "RayJob"):
        for group in groups(cluster_of(owner)):
            for volume in group["template"]["spec"].get("volumes", []):
                if CLAIM in volume:
                    place = f"{owner['metadata']['name']}/{group.get('groupName', 'head')}"
                    yield volume[CLAIM]["claimName"], place
