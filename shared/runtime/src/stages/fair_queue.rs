//! Messages that wait for their turn. Services take turns, and so do the users of each service, so that nobody waits for
//! all that somebody else has sent before.

use std::collections::{HashMap, VecDeque};

use contract::{Service, UserId};

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Amount {
    /// Whether this is as much as the limit, in messages or in bytes.
    pub(crate) fn reaches(self, limit: Self) -> bool {
        self.messages >= limit.messages || self.bytes >= limit.bytes
    }

    /// One of `count` equal parts, at least one message of one byte.
    pub(crate) fn part(self, count: usize) -> Self {
        let part = |whole: usize| (whole / count.max(1)).max(1);
        Self { messages: part(self.messages), bytes: part(self.bytes) }
    }

    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Whose message it is. A tick has neither a service nor a user.
pub(crate) type Sender = (Option<Service>, Option<UserId>);

/// A queue in which services, and the users of each, take turns. Of each user, the oldest message comes first.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    services: HashMap<Option<Service>, OfService<T>>,
    /// The services with messages, the next one first.
    turns: VecDeque<Option<Service>>,
    total: Amount,
}

#[derive(Debug)]
struct OfService<T> {
    users: HashMap<Option<UserId>, VecDeque<(T, usize)>>,
    /// The users with messages, the next one first.
    turns: VecDeque<Option<UserId>>,
    amount: Amount,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { services: HashMap::new(), turns: VecDeque::new(), total: Amount::default() }
    }
}

impl<T> Default for OfService<T> {
    fn default() -> Self {
        Self { users: HashMap::new(), turns: VecDeque::new(), amount: Amount::default() }
    }
}

impl<T> FairQueue<T> {
    /// Appends a message of this size.
    pub(crate) fn push(&mut self, (service, user): Sender, bytes: usize, message: T) {
        if !self.services.contains_key(&service) {
            self.turns.push_back(service.clone());
        }
        let of_service = self.services.entry(service).or_default();
        if !of_service.users.contains_key(&user) {
            of_service.turns.push_back(user);
        }
        of_service.users.entry(user).or_default().push_back((message, bytes));
        of_service.amount.add(bytes);
        self.total.add(bytes);
    }

    /// Everything in it.
    pub(crate) fn total(&self) -> Amount {
        self.total
    }

    /// The services that have something in it.
    pub(crate) fn services(&self) -> impl Iterator<Item = Option<&Service>> {
        self.services.keys().map(Option::as_ref)
    }

    /// What a service has in it.
    pub(crate) fn of(&self, service: Option<&Service>) -> Amount {
        self.services.get(&service.cloned()).map(|of_service| of_service.amount).unwrap_or_default()
    }

    /// Takes messages in turn until `batch` is reached, and of no service more than reaches `of_service`. Leaves out
    /// services and users that may not be taken now.
    pub(crate) fn take(
        &mut self,
        batch: Amount,
        of_service: Amount,
        may_take: impl Fn(Option<&Service>, Option<UserId>) -> bool,
    ) -> Vec<T> {
        let (mut taken, mut size) = (Vec::new(), Amount::default());
        let mut turns: VecDeque<(Option<Service>, Amount)> =
            self.turns.drain(..).map(|service| (service, Amount::default())).collect();
        let mut later = VecDeque::new();
        while !size.reaches(batch)
            && let Some((service, mut of_it)) = turns.pop_front()
        {
            let next = self.services.get_mut(&service).and_then(|queue| {
                let (message, bytes) = queue.next(|user| may_take(service.as_ref(), user))?;
                Some((message, bytes, queue.turns.is_empty()))
            });
            let Some((message, bytes, is_empty)) = next else {
                later.push_back(service);
                continue;
            };
            taken.push(message);
            size.add(bytes);
            of_it.add(bytes);
            self.total.remove(bytes);
            if is_empty {
                self.services.remove(&service);
            } else if of_it.reaches(of_service) {
                later.push_back(service);
            } else {
                turns.push_back((service, of_it));
            }
        }
        self.turns = turns.into_iter().map(|(service, _)| service).chain(later).collect();
        taken
    }
}

impl<T> OfService<T> {
    /// Takes the oldest message of the next user that may be taken.
    fn next(&mut self, may_take: impl Fn(Option<UserId>) -> bool) -> Option<(T, usize)> {
        let place = self.turns.iter().position(|user| may_take(*user))?;
        let user = self.turns.remove(place)?;
        let messages = self.users.get_mut(&user)?;
        let next = messages.pop_front();
        if messages.is_empty() {
            self.users.remove(&user);
        } else {
            self.turns.push_back(user);
        }
        if let Some((_, bytes)) = next {
            self.amount.remove(bytes);
        }
        next
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const NO_LIMIT: Amount = Amount { messages: usize::MAX, bytes: usize::MAX };

    fn sender(service: &str, user: i32) -> Sender {
        (Some(service.parse().unwrap()), Some(UserId::new(user).unwrap()))
    }

    fn any(_: Option<&Service>, _: Option<UserId>) -> bool {
        true
    }

    #[test]
    fn services_take_turns_and_so_do_their_users() {
        let mut queue = FairQueue::default();
        for number in 0..6 {
            queue.push(sender("busy", 1), 10, format!("busy 1 {number}"));
        }
        queue.push(sender("busy", 2), 10, "busy 2".to_owned());
        queue.push(sender("quiet", 1), 10, "quiet".to_owned());
        let four = Amount { messages: 4, bytes: usize::MAX };
        assert_eq!(queue.take(four, NO_LIMIT, any), ["busy 1 0", "quiet", "busy 2", "busy 1 1"]);
        assert_eq!(queue.total(), Amount { messages: 4, bytes: 40 });
        assert_eq!(queue.take(NO_LIMIT, NO_LIMIT, any), ["busy 1 2", "busy 1 3", "busy 1 4", "busy 1 5"]);
        assert_eq!(queue.total(), Amount::default());
        assert!(queue.take(NO_LIMIT, NO_LIMIT, any).is_empty());
    }

    #[test]
    fn a_service_has_a_limited_part_of_a_batch() {
        let mut queue = FairQueue::default();
        for number in 0..10 {
            queue.push(sender("large", 1), 100, number);
            queue.push(sender("many", 2), 1, 100 + number);
        }
        let part = Amount { messages: 3, bytes: 150 };
        assert_eq!(queue.take(NO_LIMIT, part, any), [0, 100, 1, 101, 102]);
        assert_eq!(queue.of(Some(&"large".parse().unwrap())), Amount { messages: 8, bytes: 800 });
        let bytes = Amount { messages: usize::MAX, bytes: 101 };
        assert_eq!(queue.take(bytes, NO_LIMIT, any), [2, 103], "until the batch holds as many bytes");
        assert_eq!(queue.take(bytes, NO_LIMIT, any), [3, 104], "the next in turn begins");
    }

    #[test]
    fn who_may_not_be_taken_stays() {
        let mut queue = FairQueue::default();
        queue.push(sender("busy", 1), 1, "held");
        queue.push(sender("busy", 2), 1, "free");
        queue.push(sender("other", 1), 1, "other");
        let free = |service: Option<&Service>, user: Option<UserId>| {
            service.is_some_and(|service| service.as_str() == "busy") && user == UserId::new(2).ok()
        };
        assert_eq!(queue.take(NO_LIMIT, NO_LIMIT, free), ["free"]);
        assert!(queue.take(NO_LIMIT, NO_LIMIT, free).is_empty());
        assert_eq!(queue.take(NO_LIMIT, NO_LIMIT, any), ["other", "held"]);
    }

    #[test]
    fn a_part_is_never_nothing() {
        let part = Amount { messages: 5, bytes: 10 }.part(3);
        assert_eq!(part, Amount { messages: 1, bytes: 3 });
        assert_eq!(part.part(100), Amount { messages: 1, bytes: 1 });
    }
}
