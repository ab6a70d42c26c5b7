//! TLS without trust: a probe asks whether somebody serves, not who, and sends nothing that another must not see. So certificates are
//! not verified, as kubelet's probes do not: one that has expired is not a server that does not serve.

use std::{net::IpAddr, sync::Arc};

use lb_core::health::Failure;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What makes TLS sessions; `None` where the library refuses its own defaults. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls(Option<TlsConnector>);

impl Tls {
    pub(super) fn new() -> Self {
        let provider = Arc::new(ring::default_provider());
        let any = Arc::new(Anybody(Arc::clone(&provider)));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| {
                let mut config = builder
                    .dangerous()
                    .with_custom_certificate_verifier(any)
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                // Every probe shall prove a whole handshake.
                config.resumption = rustls::client::Resumption::disabled();
                config
            });
        Self(config.ok().map(|config| TlsConnector::from(Arc::new(config))))
    }

    /// A session over a connection. `host` may have a port behind it.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        host: Option<&str>,
        address: IpAddr,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let connector = self.0.as_ref().ok_or(Failure::Tls)?;
        let name = host.and_then(name).unwrap_or_else(|| ServerName::from(address));
        connector.connect(name, stream).await.map_err(|_| Failure::Tls)
    }
}

/// The name in a `Host` field, where it is one that TLS can ask for.
fn name(host: &str) -> Option<ServerName<'static>> {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.contains(':') => name,
        Some(_) | None => host,
    };
    ServerName::try_from(without_port.to_owned()).ok()
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
