//! What SLS would charge, by a table of prices that the operator can replace. Pure.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The table that is built in: prices differ by region and contract.
const DEFAULT: &str = include_str!("prices.json");

/// Bytes of the GB that SLS bills.
const GB: f64 = 1_073_741_824.0;

/// What each item costs, in `currency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    pub currency: String,
    /// Where the prices are from, and of when.
    pub source: String,
    /// What goes over the wire, compressed.
    pub write_traffic_per_gb: f64,
    /// What is indexed, before compression.
    pub index_traffic_per_gb: f64,
    /// Compressed logs and their index.
    pub storage_per_gb_day: f64,
    pub requests_per_million: f64,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cost {
    pub write_traffic: f64,
    pub index_traffic: f64,
    pub requests: f64,
    /// For 30 days.
    pub storage_per_month: f64,
}

impl Cost {
    /// What is paid once.
    pub fn once(&self) -> f64 {
        self.write_traffic + self.index_traffic + self.requests
    }
}

impl Prices {
    /// The table that is built in.
    pub fn built_in() -> anyhow::Result<Self> {
        Self::parse(DEFAULT)
    }

    /// From JSON.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let prices: Self = serde_json::from_str(text).context("read the prices")?;
        let all = [
            prices.write_traffic_per_gb,
            prices.index_traffic_per_gb,
            prices.storage_per_gb_day,
            prices.requests_per_million,
        ];
        anyhow::ensure!(
            all.iter().all(|price| price.is_finite() && *price >= 0.0),
            "a price is below 0"
        );
        Ok(prices)
    }

    /// Each batch is sent once and, to be verified, pulled once.
    pub fn cost(&self, raw_bytes: f64, body_bytes: f64, batches: f64) -> Cost {
        let (raw, body) = (raw_bytes / GB, body_bytes / GB);
        Cost {
            write_traffic: 2.0 * body * self.write_traffic_per_gb,
            index_traffic: raw * self.index_traffic_per_gb,
            requests: 2.0 * batches / 1e6 * self.requests_per_million,
            storage_per_month: 30.0 * (raw + body) * self.storage_per_gb_day,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_prices_is_built_in_and_another_one_counts() {
        let built_in = Prices::built_in().unwrap();
        assert!(built_in.index_traffic_per_gb > 0.0);
        let text = serde_json::to_string(&Prices { currency: "CNY".to_owned(), ..built_in });
        let own = Prices::parse(&text.unwrap()).unwrap();
        assert_eq!(own.currency, "CNY");
        let prices = Prices {
            write_traffic_per_gb: 0.5,
            index_traffic_per_gb: 1.0,
            storage_per_gb_day: 0.1,
            requests_per_million: 2.0,
            ..own
        };
        let cost = prices.cost(10.0 * GB, 2.0 * GB, 500_000.0);
        assert_eq!((cost.write_traffic, cost.index_traffic, cost.requests), (2.0, 10.0, 2.0));
        assert_eq!((cost.once(), cost.storage_per_month.round()), (14.0, 36.0));
        assert!(Prices::parse("{}").is_err());
        let below = serde_json::to_string(&Prices { storage_per_gb_day: -1.0, ..prices }).unwrap();
        assert!(Prices::parse(&below).is_err());
    }
}
