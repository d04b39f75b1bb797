"""The lab's certificate authority and the database's certificate, as RDS has with its published bundle."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.config import DATABASE_HOST, DOMAIN, Lab
from lab.errors import LabError
from lab.state import write_atomically

LIFETIME = datetime.timedelta(days=3650)
# A machine whose clock is a little behind must not find the certificate "not yet valid".
SKEW = datetime.timedelta(days=2)


def ensure_authority(lab: Lab) -> None:
    """Make the authority unless it is there."""
    directory = lab.state / "authority"
    if (directory / "ca.crt").exists():
        return
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Waffle Iron lab {lab.name} database CA")
    builder = _builder(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    write_atomically(directory / "ca.key", _pem(key))
    write_atomically(directory / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM).decode())


def authority(lab: Lab) -> str:
    """Return the authority's certificate as PEM."""
    return (lab.state / "authority/ca.crt").read_text()


def database_certificate(lab: Lab) -> tuple[str, str]:
    """Return a new certificate and key for the database as PEM, signed by the lab's authority."""
    issuer = x509.load_pem_x509_certificate(authority(lab).encode())
    issuer_key = serialization.load_pem_private_key((lab.state / "authority/ca.key").read_bytes(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise LabError(f"{lab.state}/authority/ca.key is not the lab's key: `make down`, then `make up`")
    key = ec.generate_private_key(ec.SECP256R1())
    full_name = f"{DATABASE_HOST}.{DOMAIN}"
    alternatives = x509.SubjectAlternativeName(
        [
            x509.DNSName(full_name),
            x509.DNSName(DATABASE_HOST),
            x509.IPAddress(ipaddress.ip_address(lab.address(DATABASE_HOST))),
        ]
    )
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = _builder(_name(full_name), issuer.subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(alternatives, critical=False).add_extension(identifier, critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        builder.serial_number(x509.random_serial_number()).not_valid_before(now - SKEW).not_valid_after(now + LIFETIME)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
