//! One key pair for both hosts: `keygen` makes a directory, which the operator copies to the other host.
//!
//! There is no authority: each side accepts exactly the certificate that it holds itself, and proves with
//! the private key that it is its owner. Names, validity and chains play no part.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName,
    ServerConfig, SignatureScheme,
};

use crate::error::KeyError;

/// The certificate's file in a directory of keys.
pub const CERTIFICATE_FILE: &str = "understudy.crt";
/// The private key's file.
pub const KEY_FILE: &str = "understudy.key";
/// Most bytes that are read of either file; what `keygen` writes has less than one thousand.
const MAX_FILE: u64 = 64 << 10;

/// How the bytes of a connection are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all: only when the operator asked for it (`--insecure`).
    Insecure,
    /// Mutually authenticated TLS 1.3.
    Tls(Box<Tls>),
}

/// The configurations of both ends, made from one key pair.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

/// Makes a key pair in `dir`, which is created if needed: readable by the owner alone.
///
/// # Errors
/// [`KeyError::Exists`] if a key is there already, [`KeyError::File`] if it cannot be written.
pub fn generate(dir: &Path) -> Result<(), KeyError> {
    let pair = rcgen::generate_simple_self_signed(vec!["understudy".to_owned()])?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| KeyError::File {
            path: dir.to_owned(),
            source,
        })?;
    create(
        &dir.join(KEY_FILE),
        pair.signing_key.serialize_pem().as_bytes(),
    )?;
    create(&dir.join(CERTIFICATE_FILE), pair.cert.pem().as_bytes())
}

/// Writes a new file that only its owner may read.
fn create(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => KeyError::Exists {
            path: path.to_owned(),
        },
        _ => KeyError::File {
            path: path.to_owned(),
            source,
        },
    })
}

impl Security {
    /// Reads the key pair that [`generate`] made.
    ///
    /// # Errors
    /// Any of [`KeyError`]; a private key that others may read is refused.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let key_path = dir.join(KEY_FILE);
        let meta = File::open(&key_path)
            .and_then(|f| f.metadata())
            .map_err(|source| KeyError::File {
                path: key_path.clone(),
                source,
            })?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Readable {
                path: key_path,
                mode,
            });
        }
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let (certificate, key) = (read(&certificate_path)?, read(&key_path)?);
        let tls = parse(&certificate, &key).map_err(|source| match source {
            Unusable::Certificate(e) => content(certificate_path, &e),
            Unusable::Key(e) => content(key_path, &e),
            Unusable::Pair(source) => KeyError::Rustls {
                path: dir.to_owned(),
                source,
            },
        })?;
        Ok(Self::Tls(Box::new(tls)))
    }
}

/// A file of a key pair.
fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(source) => Err(KeyError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Which file of a pair is of no use.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It holds no certificate.
    Certificate(pem::Error),
    /// It holds no private key.
    Key(pem::Error),
    /// rustls does not take them.
    Pair(rustls::Error),
}

/// The configurations of both ends from the contents of the two files.
pub(crate) fn parse(certificate: &[u8], key: &[u8]) -> Result<Tls, Unusable> {
    let certificate = CertificateDer::from_pem_slice(certificate).map_err(Unusable::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(Unusable::Key)?;
    configure(certificate, key).map_err(Unusable::Pair)
}

fn content(path: PathBuf, e: &pem::Error) -> KeyError {
    KeyError::Content {
        path,
        reason: e.to_string(),
    }
}

/// TLS 1.3 alone, AES-128-GCM first (the cheapest for small batches), neither resumption nor tickets.
fn configure(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Tls, rustls::Error> {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let pin = Arc::new(Pinned {
        certificate: certificate.clone(),
        algorithms: provider.signature_verification_algorithms,
    });
    let provider: Arc<CryptoProvider> = Arc::new(provider);
    let versions = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&pin) as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(vec![certificate.clone()], key.clone_key())?;
    client.resumption = Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(pin)
        .with_single_cert(vec![certificate], key)?;
    server.send_tls13_tickets = 0;
    Ok(Tls {
        client: Arc::new(client),
        server: Arc::new(server),
    })
}

/// Accepts one certificate: our own.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, presented: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if presented.as_ref() == self.certificate.as_ref() {
            return Ok(());
        }
        Err(rustls::Error::InvalidCertificate(
            CertificateError::ApplicationVerificationFailure,
        ))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// True if `e` says that one side holds another key than the other.
pub(crate) fn is_wrong_key(e: &rustls::Error) -> bool {
    use rustls::AlertDescription as A;
    matches!(
        e,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::AlertReceived(
                A::AccessDenied
                    | A::BadCertificate
                    | A::CertificateUnknown
                    | A::DecryptError
                    | A::UnknownCA
            )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_made_once_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        generate(&keys).unwrap();
        assert!(matches!(Security::load(&keys).unwrap(), Security::Tls(_)));
        assert!(matches!(generate(&keys), Err(KeyError::Exists { .. })));
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join(KEY_FILE))), (0o700, 0o600));
    }

    #[test]
    fn bad_directories_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Security::load(dir.path()),
            Err(KeyError::File { .. })
        ));
        generate(dir.path()).unwrap();
        let key = dir.path().join(KEY_FILE);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Security::load(dir.path()),
            Err(KeyError::Readable { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(dir.path().join(CERTIFICATE_FILE), "nonsense").unwrap();
        assert!(matches!(
            Security::load(dir.path()),
            Err(KeyError::Content { .. })
        ));
    }
}
