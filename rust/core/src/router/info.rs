//! What a router tells of an instance.

/// Where an instance stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// Not connected: the first attempt is under way, or the last one failed.
    #[default]
    Down,
    /// Takes requests.
    Up,
    /// Connected, but its engine does not answer: passed over until the worker says that it does.
    Unready,
    /// Connected, but takes no new requests any more.
    Draining,
    /// Connected, but its link was lost under calls too often lately: taken only if there is no other, until a
    /// call that is sent there on trial is answered.
    Ejected,
    /// No longer listed by discovery. Its streams end as they will, new calls do not go there.
    Tombstoned,
}

impl InstanceState {
    /// Its name, as documents and messages have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Unready => "unready",
            Self::Draining => "draining",
            Self::Ejected => "ejected",
            Self::Tombstoned => "tombstoned",
        }
    }
}

/// What is known of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceInfo {
    /// Where it is.
    pub address: String,
    /// Its identity; empty until it was first connected.
    pub instance_id: String,
    /// Where it stands.
    pub state: InstanceState,
    /// Its endpoints.
    pub endpoints: Vec<String>,
    /// Calls of this router in flight there.
    pub in_flight: usize,
    /// Why it is down, if it is.
    pub last_error: Option<String>,
}
