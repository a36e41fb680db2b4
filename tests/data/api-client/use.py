"""Uses the client that openapi-python-client made of the API's document: use.py ADDRESS KEY."""

import sys

from made import AuthenticatedClient
from made.api.messages import messages_send
from made.api.smtp_accounts import smtp_accounts_add, smtp_accounts_change, smtp_accounts_list
from made.api.tenants import tenants_add, tenants_list, tenants_show
from made.models import (
    NewMessageJson,
    NewSmtpAccountJson,
    NewTenantJson,
    ProblemJson,
    SmtpAccountChangeJson,
)

address, key = sys.argv[1:]
client = AuthenticatedClient(base_url=f"{address}/api/v1", token=key, verify_ssl=False)

made = tenants_add.sync(client=client, body=NewTenantJson(name="by-client"))
assert made.name == "by-client" and made.suspended is False, made

again = tenants_add.sync(client=client, body=NewTenantJson(name="by-client"))
assert isinstance(again, ProblemJson) and again.status == 409, again

names = [row.name for row in tenants_list.sync(client=client).rows]
assert "by-client" in names and "shop" in names, names
assert tenants_show.sync("by-client", client=client).id == made.id

account = smtp_accounts_add.sync(client=client, body=NewSmtpAccountJson(tenant="shop", name="Web shop"))
assert account.password and account.account.name == "Web shop", account
login = account.account.login
changed = smtp_accounts_change.sync(login, client=client, body=SmtpAccountChangeJson(header_dialects=["mailgun"]))
assert changed.header_dialects == ["mailgun"], changed
assert login in [row.login for row in smtp_accounts_list.sync(client=client, tenant="shop").rows]

letter = NewMessageJson(
    tenant="shop",
    from_="Shop <orders@shop.example.com>",
    to=["someone@receiver.test"],
    subject="By a client made of the document",
    text="Hello",
    tags=["order"],
)
sent = messages_send.sync(client=client, body=letter)
assert sent.recipients[0].status == "queued", sent

print("used:", made.name, login, sent.id)
