//! Whether the kernel holds back a segment that is not full, since more is to follow.

use rustix::net::sockopt;

use super::connection::{Conn, ConnState, Cork};
use crate::socket::kind::Kind;
use crate::sync::lock;

impl Conn {
    pub(super) fn cork(&self, state: &mut ConnState) {
        if state.cork == Cork::Series && self.endpoint.kind() == Kind::Tcp {
            let free = sockopt::tcp_cork(&self.endpoint) == Ok(false);
            // Where it cannot be set (a seccomp filter), there are more packets, and that is all.
            let set = free && sockopt::set_tcp_cork(&self.endpoint, true).is_ok();
            state.cork = if set { Cork::In } else { Cork::Theirs };
        }
    }

    /// Something was sent: with more to follow, or the `whole` of what was the last of a series.
    #[inline(always)]
    pub(super) fn follow(&self, state: &mut ConnState, more: bool, whole: bool) {
        if more && state.cork == Cork::Out {
            state.cork = Cork::Series;
        } else if !more && whole {
            self.uncork(state);
        }
    }

    /// Sends what is held back for more to follow.
    pub(super) fn uncork(&self, state: &mut ConnState) {
        if std::mem::replace(&mut state.cork, Cork::Out) == Cork::In {
            // It succeeded before.
            let _ = sockopt::set_tcp_cork(&self.endpoint, false);
        }
    }

    /// Sends what is held back: nothing may follow for a while.
    pub(crate) fn flush(&self) {
        if self.endpoint.is_ours() {
            self.push(&mut lock(&self.state));
        }
    }

    /// Sends what is held back, also by one send alone (`MSG_MORE`), which
    /// [`uncork`](Self::uncork) does not.
    pub(super) fn push(&self, state: &mut ConnState) {
        // Where it cannot be set it need not be: what is held back goes by itself in 200 ms.
        self.cork(state);
        self.uncork(state);
    }
}
