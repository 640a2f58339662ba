//! What tokens cost.

use deephold_state::Amount;

/// Billionths of the currency for one token of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Price {
    prompt: u64,
    cached: u64,
    completion: u64,
}

/// Prices of models by name; what is not listed costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    currency: String,
    of_models: Vec<(String, Price)>,
}

/// Billionths for a token, from a price for a million of them: at most six digits before and three behind the point.
fn nanos(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || whole.len() > 6 || part.len() > 3 || !digits(whole) || !digits(part) {
        return None;
    }
    format!("{whole}{part:0<3}").parse().ok()
}

impl Prices {
    /// From lines `MODEL=PROMPT/CACHED/ANSWER`, each the price of a million tokens.
    ///
    /// # Errors
    /// The line that is none, and why.
    pub fn parse(currency: &str, lines: &[String]) -> Result<Self, String> {
        if currency.len() != 3 || !currency.chars().all(|c| c.is_ascii_uppercase()) {
            return Err(format!("`{currency}` is no currency: three capital letters, as EUR"));
        }
        let mut of_models: Vec<(String, Price)> = Vec::new();
        for line in lines {
            let bad = || {
                format!(
                    "`{line}` is no price; write MODEL=PROMPT/CACHED/ANSWER for a million tokens each, as r1=0.55/0.14/2.19"
                )
            };
            let (model, prices) = line.rsplit_once('=').filter(|(m, _)| !m.is_empty()).ok_or_else(bad)?;
            let prices: Option<Vec<u64>> = prices.split('/').map(nanos).collect();
            let Some(&[prompt, cached, completion]) = prices.as_deref() else { return Err(bad()) };
            if of_models.iter().any(|(name, _)| name == model) {
                return Err(format!("`{model}` has two prices"));
            }
            of_models.push((model.to_owned(), Price { prompt, cached, completion }));
        }
        Ok(Self { currency: currency.to_owned(), of_models })
    }

    /// As ISO 4217 names it.
    pub(crate) fn currency(&self) -> &str {
        &self.currency
    }

    /// Billionths of the currency for so many tokens; the cached ones are among those of the prompt.
    pub(crate) fn cost_nanos(&self, model: &str, prompt: u64, cached: u64, completion: u64) -> u64 {
        let price =
            self.of_models.iter().find(|(name, _)| name == model).map(|(_, p)| *p).unwrap_or_default();
        let parts = [
            (prompt.saturating_sub(cached), price.prompt),
            (cached, price.cached),
            (completion, price.completion),
        ];
        parts.iter().fold(0, |sum, (tokens, each)| sum.saturating_add(tokens.saturating_mul(*each)))
    }

    /// What a request may take at most: the dearer of both prices for each token of its prompts, and all tokens of its answers.
    pub(crate) fn most(&self, model: &str, prompt: u64, completion: u64) -> Amount {
        let cost = |cached| self.cost_nanos(model, prompt, cached, completion);
        Amount {
            requests: 1,
            tokens: prompt.saturating_add(completion),
            cost_nanos: cost(0).max(cost(prompt)),
        }
    }
}

/// Billionths of a currency as people write them, rounded to the cent of a cent.
pub(crate) fn amount_text(nanos: u64) -> String {
    let hundredths_of_cents = nanos.div_ceil(100_000);
    format!("{}.{:04}", hundredths_of_cents / 10_000, hundredths_of_cents % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_exact() {
        let lines = ["r1=0.55/0.14/2.19".to_owned(), "a=b=3/0/999999.999".to_owned()];
        let prices = Prices::parse("EUR", &lines).expect("prices");
        // A million tokens of each kind cost what the line says.
        let million = 1_000_000;
        assert_eq!(prices.cost_nanos("r1", million, 0, 0), 550_000_000);
        assert_eq!(prices.cost_nanos("r1", million, million, 0), 140_000_000);
        assert_eq!(prices.cost_nanos("r1", 0, 0, million), 2_190_000_000);
        assert_eq!(prices.cost_nanos("a=b", 2, 1, 1), 3_000 + 999_999_999);
        assert_eq!(prices.cost_nanos("other", 5, 0, 5), 0);
        assert_eq!(prices.cost_nanos("r1", u64::MAX, 0, u64::MAX), u64::MAX);
        assert_eq!(prices.most("r1", 2, 1), Amount { requests: 1, tokens: 3, cost_nanos: 2 * 550 + 2190 });
        assert_eq!(amount_text(1_234_567_890), "1.2346");
        for bad in
            ["r1", "=1/1/1", "r1=1/1", "r1=1/1/1/1", "r1=-1/0/0", "r1=1e3/0/0", "r1=1.0001/0/0", "r1=/0/0"]
        {
            assert!(Prices::parse("EUR", &[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(Prices::parse("EUR", &[lines[0].clone(), lines[0].clone()]).is_err());
        assert!(Prices::parse("euro", &[]).is_err());
    }
}
