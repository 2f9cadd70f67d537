"""An Apache Kafka that lets nobody in without TLS and a password, with certificates made for it."""

import datetime
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ops.broker import Broker, apache, free_port

PASSWORD = "not-to-be-seen-4711"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
PLAIN = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    f'username="admin" password="unused" user_headrace="{PASSWORD}";'
)
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True)
class Secured:
    """address: of the SASL_SSL listener; open: the same broker without, for tests to look into it. ca: the authority's
    certificate; other: that of one which has signed nothing; password: a file with the user headrace's."""

    address: str
    open: Broker
    ca: Path
    other: Path
    password: Path

    def options(self, mechanism: str = "SCRAM-SHA-512", ca: Path | None = None, password: str = "") -> dict[str, str]:
        """What a client is told."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": "headrace",
            "sasl.password": password or f"file:{self.password}",
            "ssl.ca.location": str(ca or self.ca),
        }


@contextmanager
def secured(home: Path, folder: Path) -> Iterator[Secured]:
    """Starts one, and ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, other = authority("headrace test"), authority("somebody else")
    for name, (certificate, _) in (("ca", ca), ("other", other)):
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "broker.pem").write_bytes(signed(*ca))
    (folder / "password").write_text(PASSWORD + "\n")
    address = f"127.0.0.1:{free_port()}"
    listener = "listener.name.sasl_ssl"
    more = {
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        f"{listener}.plain.sasl.jaas.config": PLAIN,
        f"{listener}.scram-sha-256.sasl.jaas.config": SCRAM,
        f"{listener}.scram-sha-512.sasl.jaas.config": SCRAM,
    }
    users = [f"{mechanism}=[name=headrace,password={PASSWORD}]" for mechanism in MECHANISMS[1:]]
    with apache(home, folder / "kafka", listeners=[f"SASL_SSL://{address}"], more=more, users=users) as broker:
        yield Secured(address, broker, folder / "ca.pem", folder / "other.pem", folder / "password")


Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def authority(name: str) -> Authority:
    """A certificate that may sign others, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = _builder(subject, subject, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()), key


def signed(certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """A key and a certificate for 127.0.0.1, signed, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    made = _builder(subject, certificate.subject, key).add_extension(names, critical=False).sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + made.public_bytes(pem) + certificate.public_bytes(pem)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
