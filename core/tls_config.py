"""The section `tls` of the config: which PEM files encrypt what. Does not cover: reading them
(``wire``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from core.config_section import Section
from core.errors import InvalidField
from core.tls_files import MEMBER_NAME, OPERATOR_NAME, ServerFiles, TlsFiles

FilePath = Annotated[str, Field(min_length=1)]
DnsName = Annotated[
    str,
    Field(max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*$"),
]


class DoorsTlsSpec(Section):
    """PEM files for the doors that clients come to, gRPC and HTTP, on the routers' hosts."""

    cert: FilePath
    """The certificate that clients see, with those between it and its authority."""
    key: FilePath
    """Its key."""
    client_ca: FilePath | None = None
    """Who signs clients' certificates. With it, clients without one are refused; but for `/health`
    and `/ready`, which probes ask."""


class TlsSpec(Section):
    """Encryption. PEM files, at the same paths on every node; renewed ones are taken up. With `ca`,
    `cert` and `key`, processes of the cluster speak by mutual TLS only."""

    ca: FilePath | None = None
    """Who signed the certificates of all processes of the cluster, and of its operators."""
    cert: FilePath | None = None
    """The certificate that processes of the cluster show to each other."""
    key: FilePath | None = None
    """Its key."""
    name: DnsName = MEMBER_NAME
    """The DNS name that the certificates of the cluster's processes have, and no others: who shows
    it is one of them. Addresses are not compared."""
    operator_name: DnsName = OPERATOR_NAME
    """The DNS name of operators' certificates, which open the admin port and show metrics."""
    unencrypted_nccl: bool = False
    """On GPUs, what goes over NCCL is not encrypted: KV blocks between hosts, and what the ranks of
    a worker tell each other. True: so be it; else such a cluster is refused."""
    doors: DoorsTlsSpec | None = None
    """Without it clients are answered in the clear: put TLS in front."""

    @model_validator(mode="after")
    def _is_whole(self) -> TlsSpec:
        given = {"ca": self.ca, "cert": self.cert, "key": self.key}
        if any(given.values()):
            for name, path in given.items():
                if path is None:
                    fix = "is missing: tls needs it beside the others"
                    raise InvalidField(f"tls.{name}", None, fix)
        elif self.doors is None:
            raise ValueError("give ca, cert and key, or doors, or leave tls out")
        if self.operator_name == self.name:
            fix = "is tls.name, too: operators would be processes of the cluster; choose another"
            raise InvalidField("tls.operator_name", self.operator_name, fix)
        return self

    @property
    def files(self) -> TlsFiles | None:
        """Of the cluster's processes."""
        if self.ca is None or self.cert is None or self.key is None:
            return None
        return TlsFiles(self.ca, self.cert, self.key, self.name)

    @property
    def door_files(self) -> ServerFiles | None:
        doors = self.doors
        if doors is None:
            return None
        return ServerFiles(doors.cert, doors.key, doors.client_ca, "tls.doors")
