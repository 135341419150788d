//! How long a request that was signed may still take effect.

use std::time::Duration;

/// SLS refuses a request that is further than 15 min from its signature's date (aliyun, error codes:
/// `RequestTimeExpired`).
pub const SIGNATURE_LIFE_S: u32 = 900;

/// The life of a signature, and the waits that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureLife {
    life_s: u32,
}

impl SignatureLife {
    /// SLS's own.
    pub const SLS: Self = Self { life_s: SIGNATURE_LIFE_S };

    /// Another one, for a local SLS with a shorter life; at least a second.
    pub fn of(life_s: u32) -> Self {
        Self { life_s: life_s.max(1) }
    }

    /// No request is stored later than that after its signature's date: the life and a slack, which
    /// is 2 min of SLS's 15.
    pub fn over_after(self) -> Duration {
        Duration::from_secs(self.life_s.into()) * 17 / 15
    }

    /// How often a process looks whether it may still send: every minute of SLS's 15.
    pub fn look_every(self) -> Duration {
        Duration::from_secs(self.life_s.into()) / 15
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_of_sls_are_17_minutes_and_one() {
        assert_eq!(SignatureLife::SLS.over_after(), Duration::from_secs(17 * 60));
        assert_eq!(SignatureLife::SLS.look_every(), Duration::from_secs(60));
        assert_eq!(SignatureLife::of(0), SignatureLife::of(1));
    }
}
