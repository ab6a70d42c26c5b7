//! TLS before the protocol, as a real server has it: an authority that nobody else knows, and clients that are known by their
//! certificates.
//!
//! Never an administrator for nothing: whoever shows neither a certificate nor a token is nobody. Certificates are made by
//! `openssl`, as people make them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::ByteString;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::Identity;

/// Names by which the server is called.
const NAMES: &str =
    "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc\nextendedKeyUsage=serverAuth\n";

/// A certificate authority, the server's certificate, and whose the others are. Clones are the same.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    directory: tempfile::TempDir,
    acceptor: TlsAcceptor,
    /// By their bytes.
    clients: Mutex<BTreeMap<Vec<u8>, Identity>>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// `openssl` is not there, or fails.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let authority = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "7",
        ];
        openssl(
            path,
            &authority,
            &["-subj", "/CN=double", "-keyout", "ca.key", "-out", "ca.crt"],
        )?;
        issue(path, "server", "/CN=kube-apiserver", NAMES)?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(path.join("ca.crt"))?)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(path.join("server.crt"))?],
                PrivateKeyDer::from_pem_file(path.join("server.key"))?,
            )?;
        let inner = Inner {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            clients: Mutex::default(),
            directory,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its certificate, for kubeconfigs: PEM in base64.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn certificate(&self) -> io::Result<String> {
        encoded(&self.inner.directory.path().join("ca.crt"))
    }

    /// Issues a certificate as a kubeconfig's user has it: `client-certificate-data` and `client-key-data`. The common name is the
    /// user, the organizations are the groups.
    ///
    /// # Errors
    /// `openssl` fails.
    pub fn client(&self, common_name: &str, organizations: &[&str]) -> anyhow::Result<String> {
        let path = self.inner.directory.path();
        let organizations_of: String = organizations.iter().map(|name| format!("/O={name}")).collect();
        let subject = format!("{organizations_of}/CN={common_name}");
        let mut clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let file = format!("client-{}", clients.len());
        issue(path, &file, &subject, "extendedKeyUsage=clientAuth\n")?;
        let (certificate, key) = (path.join(format!("{file}.crt")), path.join(format!("{file}.key")));
        let groups = organizations.iter().copied().chain(["system:authenticated"]);
        let identity = Identity {
            username: common_name.to_owned(),
            groups: groups.map(ToOwned::to_owned).collect(),
            extra: BTreeMap::new(),
        };
        clients.insert(CertificateDer::from_pem_file(&certificate)?.to_vec(), identity);
        let (certificate, key) = (encoded(&certificate)?, encoded(&key)?);
        Ok(format!(
            "{{client-certificate-data: {certificate}, client-key-data: {key}}}"
        ))
    }

    /// Shakes hands; who the client is, where it shows a certificate.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Option<Identity>)> {
        let stream = self.inner.acceptor.accept(stream).await?;
        let clients = self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = shown.and_then(|certificate| clients.get(&certificate[..]).cloned());
        drop(clients);
        Ok((stream, identity))
    }
}

fn encoded(file: &Path) -> io::Result<String> {
    let value = serde_json::to_value(ByteString(std::fs::read(file)?))?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

/// Makes `FILE.key` and `FILE.crt`, signed by `ca`.
fn issue(directory: &Path, file: &str, subject: &str, extensions: &str) -> anyhow::Result<()> {
    let [key, request, certificate, words] = ["key", "csr", "crt", "ext"].map(|end| format!("{file}.{end}"));
    std::fs::write(directory.join(&words), extensions)?;
    let new = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
    ];
    openssl(directory, &new, &["-keyout", &key, "-out", &request])?;
    let sign = [
        "x509",
        "-req",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "7",
    ];
    openssl(
        directory,
        &sign,
        &["-in", &request, "-out", &certificate, "-extfile", &words],
    )
}

fn openssl(directory: &Path, words: &[&str], more: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .current_dir(directory)
        .args(words)
        .args(more)
        .output();
    let output = output.map_err(|error| anyhow::anyhow!("cannot run openssl (`make setup` installs it): {error}"))?;
    anyhow::ensure!(
        output.status.success(),
        "openssl {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
