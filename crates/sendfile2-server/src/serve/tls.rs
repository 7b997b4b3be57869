//! Certificates.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Returns what accepts TLS with this chain of certificates, and this key of theirs.
pub(super) fn acceptor(cert: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in {}", cert.display());
    let name = key.display();
    let pem = std::fs::read(key).with_context(|| format!("cannot read {name}"))?;
    // In the section's name, or in a header of the older kind.
    anyhow::ensure!(
        !pem.windows(9).any(|word| word == b"ENCRYPTED"),
        "the private key in {name} is encrypted: decrypt it into a file that only you can read \
         (umask 077; openssl pkey -in {name} -out decrypted.pem)"
    );
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| match e {
        PemError::NoItemsFound => anyhow::anyhow!("there is no private key (PEM) in {name}"),
        e => anyhow::Error::from(e).context(format!("cannot read a private key from {name}")),
    })?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not make a TLS server")?;
    config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
