//! Reads dialogues and turns them into requests.

use tokio::sync::mpsc;

use super::Source;
use crate::dialogue::{Corpus, DialogueError, Dialogues, Mapper, Prepared, SAMPLE};

/// The requests of one dialogue.
pub(super) struct Ready {
    pub(super) requests: Vec<Prepared>,
    pub(super) turns: usize,
    /// Number of users so far.
    pub(super) users: usize,
}

/// Reads and maps dialogues until the end, an error, or the receiver is dropped.
pub(super) fn read(source: &Source, users: u32, to_publish: &mpsc::Sender<Result<Ready, DialogueError>>) {
    let (dialogues, corpus) = match source {
        Source::File(path) => (Dialogues::open(path), Corpus::Sgd),
        Source::Sample => (Dialogues::from_bytes("the sample", SAMPLE), Corpus::Sample),
    };
    let opened = dialogues.and_then(|dialogues| Ok((dialogues, Mapper::new(corpus, users)?)));
    let (dialogues, mut mapper) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // Fails only if the receiver was dropped because the command is stopping.
            let _ = to_publish.blocking_send(Err(error));
            return;
        }
    };
    for dialogue in dialogues {
        let ready = dialogue.and_then(|dialogue| {
            let requests = mapper.requests(&dialogue)?;
            Ok(Ready { requests, turns: dialogue.turns.len(), users: mapper.users() })
        });
        let failed = ready.is_err();
        if to_publish.blocking_send(ready).is_err() || failed {
            return;
        }
    }
}
