//! Where a worker listens and a router connects: `host:port` or `unix:/path`. Addresses off loopback are
//! refused unless the caller says `insecure`, since nothing on the wire is encrypted yet.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// A parsed target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`; an IPv6 host stands in brackets.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// Port; 0 lets the system choose one when binding.
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It is neither `host:port` nor `unix:/path`.
    #[error("{given:?} is not an address: write \"host:port\" or \"unix:/path\"")]
    Malformed {
        /// What was given.
        given: String,
    },
    /// It is not `file:///path`.
    #[error("{given:?} is not a directory of workers: write \"file:///path\" with a path from the root on")]
    NoDirectory {
        /// What was given.
        given: String,
    },
    /// It leaves this machine and the traffic would not be encrypted.
    #[error(
        "{address} is not a loopback address and the link is neither encrypted nor authenticated; \
         pass insecure=True to use it all the same"
    )]
    NotLoopback {
        /// The address.
        address: String,
    },
    /// Its host name cannot be resolved.
    #[error("cannot resolve {address}: {reason}")]
    Unresolved {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(given: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed { given: given.to_owned() };
        if let Some(path) = given.strip_prefix("unix:") {
            return if path.is_empty() { Err(malformed()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = given.rsplit_once(':').ok_or_else(malformed)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner,
            None if host.contains(':') => return Err(malformed()),
            None => host,
        };
        if host.is_empty() {
            return Err(malformed());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| malformed())? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Resolves a TCP address, refusing hosts off loopback unless `insecure`. Blocks on name resolution.
    ///
    /// # Errors
    /// The name cannot be resolved, or leads off this machine. A Unix path resolves to nothing.
    pub fn resolve(&self, insecure: bool) -> Result<Vec<SocketAddr>, AddressError> {
        let Self::Tcp { host, port } = self else { return Ok(Vec::new()) };
        let unresolved = |reason: String| AddressError::Unresolved { address: self.to_string(), reason };
        let found: Vec<SocketAddr> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| unresolved(error.to_string()))?
            .filter(|address| insecure || is_loopback(address.ip()))
            .collect();
        if found.is_empty() {
            return Err(AddressError::NotLoopback { address: self.to_string() });
        }
        Ok(found)
    }

    /// Refuses what is plainly off loopback without resolving names: for checks at construction.
    ///
    /// # Errors
    /// The host is an IP address off loopback and `insecure` is false.
    pub fn check(&self, insecure: bool) -> Result<(), AddressError> {
        match self {
            Self::Tcp { host, .. } if !insecure => match host.parse::<IpAddr>() {
                Ok(ip) if !is_loopback(ip) => Err(AddressError::NotLoopback { address: self.to_string() }),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["127.0.0.1:80", "localhost:0", "[::1]:7411", "unix:/tmp/a b"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_are_refused_with_the_expected_form() {
        for text in ["", "host", ":80", "::1:80", "host:port", "host:70000", "unix:"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("host:port"), "{text}: {error}");
        }
    }

    #[test]
    fn off_loopback_needs_insecure() {
        for text in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1"] {
            let address: Address = text.parse().unwrap();
            assert!(matches!(address.check(false), Err(AddressError::NotLoopback { .. })), "{text}");
            assert!(matches!(address.resolve(false), Err(AddressError::NotLoopback { .. })), "{text}");
            assert!(address.check(true).is_ok() && address.resolve(true).is_ok(), "{text}");
        }
        let mapped: Address = "[::ffff:127.0.0.1]:1".parse().unwrap();
        assert!(mapped.check(false).is_ok());
    }
}
