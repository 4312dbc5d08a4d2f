//! Stage three: may this publisher do this to this user's memory?
//!
//! Only this stage makes an [`Authorised`] message, and only authorised messages are written.

use crate::decode::Decoded;
use crate::worker::Message;

/// A message that may be written.
#[derive(Debug)]
pub struct Authorised<R> {
    message: Message<R>,
    delivery: crate::pull::Delivery,
}

impl<R> Authorised<R> {
    /// The message.
    pub fn message(&self) -> &Message<R> {
        &self.message
    }

    /// How it came, for settling it.
    pub fn delivery(&self) -> &crate::pull::Delivery {
        &self.delivery
    }

    pub(crate) fn into_delivery(self) -> crate::pull::Delivery {
        self.delivery
    }
}

/// Why a message may not be written. The publisher learns the class only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// What was refused, for the audit trail and the dead letter.
    pub reason: String,
}

/// Passes every message: who may publish what is the broker's permissions' business, and theirs alone, as long
/// as messages carry no service token.
///
/// # Errors
/// None so far; a refusal is a [`Denied`] with the message it concerns.
pub fn authorise<R>(decoded: Decoded<R>) -> Result<Authorised<R>, Box<(crate::pull::Delivery, Denied)>> {
    let Decoded { message, delivery } = decoded;
    Ok(Authorised { message, delivery })
}
