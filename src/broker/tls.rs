//! The TLS settings of `--tls-ca`, `--tls-cert` and `--tls-key`.

use std::path::PathBuf;

/// What the command line says about TLS; used for `amqps` URLs only.
#[derive(Debug, Clone, Default)]
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub struct TlsFiles {
    /// A PEM file with one or more certificates of authorities to trust, beside the system's.
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate and what leads to its authority.
    pub certificate: Option<PathBuf>,
    /// A PEM file with the client's private key (PKCS#8).
    pub key: Option<PathBuf>,
}

#[cfg(feature = "tls")]
pub(super) use with_tls::{Connector, alert_fault, failure_fault};

#[cfg(feature = "tls")]
mod with_tls {
    use std::path::Path;

    use native_tls::{Certificate, Identity, TlsConnector};

    use super::TlsFiles;
    use crate::broker::fault::{Fault, FaultKind};
    use crate::broker::socket::TlsFailure;
    use crate::error::{Error, Result};
    use crate::output;

    /// Ready to make TLS connections.
    #[derive(Clone)]
    pub(in crate::broker) struct Connector(TlsConnector);

    impl Connector {
        /// Reads the files.
        ///
        /// # Errors
        /// Configuration, naming the file.
        pub(in crate::broker) fn new(files: &TlsFiles) -> Result<Self> {
            let mut builder = TlsConnector::builder();
            if let Some(path) = &files.ca {
                let certificates = Certificate::stack_from_pem(&read(path)?)
                    .map_err(|error| unusable(path, &error.to_string()))?;
                if certificates.is_empty() {
                    return Err(unusable(path, "it holds no PEM certificate"));
                }
                for certificate in certificates {
                    builder.add_root_certificate(certificate);
                }
            }
            if let (Some(certificate), Some(key)) = (&files.certificate, &files.key) {
                let identity = Identity::from_pkcs8(&read(certificate)?, &read(key)?).map_err(|error| {
                    unusable(
                        key,
                        &format!(
                            "no client identity comes of it and {} ({error}); the key has to be PEM in PKCS#8 \
                             form, which `openssl pkcs8 -topk8 -nocrypt` makes",
                            output::path(certificate)
                        ),
                    )
                })?;
                builder.identity(identity);
            }
            let connector = builder
                .build()
                .map_err(|error| Error::configuration(format!("cannot set up TLS: {error}")))?;
            Ok(Self(connector))
        }

        pub(in crate::broker) fn native(&self) -> &TlsConnector {
            &self.0
        }
    }

    fn read(path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).map_err(|error| unusable(path, &error.to_string()))
    }

    fn unusable(path: &Path, why: &str) -> Error {
        Error::configuration(format!("cannot use the TLS file {}: {why}", output::path(path)))
    }

    /// The peer's own words that it refuses, if these are.
    pub(in crate::broker) fn alert_fault(error: &str) -> Option<Fault> {
        let refused = error.to_ascii_lowercase().contains("alert");
        refused.then(|| {
            let words = "the broker refused TLS; it may require --tls-cert and --tls-key";
            Fault::connection(FaultKind::Refused, format!("{words} ({error})"))
        })
    }

    /// What a failed handshake means. OpenSSL's texts are kept, with words a user can act on before them.
    pub(in crate::broker) fn failure_fault(failure: TlsFailure, host: &str) -> Fault {
        let error = match failure {
            TlsFailure::Io(error) => return Fault::lost(error.to_string()),
            TlsFailure::Handshake(error) => error.to_string(),
        };
        let has = |needle: &str| error.to_ascii_lowercase().contains(needle);
        let (kind, words) = if has("hostname mismatch") || has("ip address mismatch") {
            (FaultKind::Refused, format!("the broker's certificate is not for {host}"))
        } else if has("certificate has expired") {
            (FaultKind::Refused, "the broker's certificate has expired".to_owned())
        } else if has("certificate verify failed") {
            (
                FaultKind::Refused,
                "the broker's certificate is not trusted; name its authority with --tls-ca".to_owned(),
            )
        } else if let Some(fault) = alert_fault(&error) {
            return fault;
        } else if has("wrong version number") || has("packet length too long") || has("http request") {
            (FaultKind::Lost, "no TLS is spoken on this port".to_owned())
        } else {
            (FaultKind::Lost, "the TLS handshake failed".to_owned())
        };
        Fault::connection(kind, format!("{words} ({error})"))
    }
}
