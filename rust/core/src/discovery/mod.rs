//! Where routers learn of workers. Discovery is a hint: it says where to connect, and whether a worker lives is
//! decided on the link to it. A worker that is listed and cannot be reached is passed over.

mod directory;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use self::directory::Directory;
use crate::address::Address;

/// A worker as a router finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Where it listens.
    pub address: Address,
    /// Its identity; empty when only its address is known.
    pub instance_id: String,
    /// Its endpoints, as far as they are known. The worker's own word counts, once it is connected.
    pub endpoints: Vec<String>,
}

impl Listing {
    /// A worker of which nothing is known but where it is.
    #[must_use]
    pub const fn at(address: Address) -> Self {
        Self { address, instance_id: String::new(), endpoints: Vec::new() }
    }
}

/// What a place lists; `None` as long as nobody has looked.
pub type Found = Option<Arc<[Listing]>>;

/// A worker's entry; dropping it takes the worker off the list.
pub struct Registration(#[expect(dead_code, reason = "held to be dropped")] Box<dyn Any + Send + Sync>);

impl Registration {
    /// Ends when `entry` is dropped.
    pub fn new(entry: impl Any + Send + Sync) -> Self {
        Self(Box::new(entry))
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registration")
    }
}

/// Why a place for entries cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// The system refuses.
    #[error("cannot use {place} for discovery: {source}")]
    Io {
        /// The place.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others could list workers of their own there.
    #[error("cannot use {place} for discovery: {reason}")]
    Insecure {
        /// The place.
        place: String,
        /// Who could.
        reason: String,
    },
    /// Workers cannot list themselves there.
    #[error("{place} is a fixed list: workers cannot add themselves to it")]
    Fixed {
        /// The place.
        place: String,
    },
}

/// A place where workers list themselves and routers find them.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// Begins to look; the receiver holds what was found last, nothing before the first look. Looking ends when
    /// every receiver is gone. Where a place cannot be read for a while, the last list stands.
    fn watch(&self, runtime: &Handle) -> watch::Receiver<Found>;

    /// Lists a worker until the registration is dropped, or its process has ended in any way. May block for as
    /// long as writing a small file takes.
    ///
    /// # Errors
    /// The place cannot be used.
    fn register(&self, listing: &Listing) -> Result<Registration, DiscoveryError>;

    /// The place, for messages.
    fn place(&self) -> String;
}

/// A list of addresses that does not change.
#[derive(Debug)]
pub struct Fixed {
    listings: Arc<[Listing]>,
    /// Keeps the receivers from seeing the end of a channel.
    list: watch::Sender<Found>,
}

impl Fixed {
    /// The workers at these addresses; one that is given twice counts once.
    #[must_use]
    pub fn new(addresses: &[Address]) -> Self {
        let listings: Arc<[Listing]> = addresses.iter().cloned().map(Listing::at).collect();
        Self { list: watch::Sender::new(Some(Arc::clone(&listings))), listings }
    }
}

impl Discovery for Fixed {
    fn watch(&self, _runtime: &Handle) -> watch::Receiver<Found> {
        self.list.subscribe()
    }

    fn register(&self, _listing: &Listing) -> Result<Registration, DiscoveryError> {
        Err(DiscoveryError::Fixed { place: self.place() })
    }

    fn place(&self) -> String {
        let addresses: Vec<_> = self.listings.iter().map(|listing| listing.address.to_string()).collect();
        format!("[{}]", addresses.join(", "))
    }
}
