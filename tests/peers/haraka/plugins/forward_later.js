'use strict'
// Takes mail for later@peer.test and forwards it to nobody@gone.test, which comes to nothing; everybody else is refused.

const outbound = require('./outbound')

exports.hook_rcpt = function (next, connection, params) {
    const is_later = params[0].address.toLowerCase() === 'later@peer.test'
    next(is_later ? OK : DENY, is_later ? undefined : 'no such mailbox here')
}

exports.hook_queue = function (next, connection) {
    const transaction = connection.transaction
    const Address = transaction.rcpt_to[0].constructor
    transaction.rcpt_to = [new Address('<nobody@gone.test>')]
    connection.relaying = true
    outbound.send_trans_email(transaction, next)
}
