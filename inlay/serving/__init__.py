"""Variants behind an OpenAI API: the bank of one base, shared by everybody's requests.

requests.py     what a request asks for, and what comes back, token by token
kv_rows.py      the keys and values of the rows that are being answered, in one buffer
sampling.py     the next token of each row, from its logits
streaming.py    from token ids to text, as they come; stop strings
prefixes.py     keys and values of prompts seen before, by tenant and digest
scheduler.py    one batch that requests join and leave between two tokens
shelf.py        what is loaded: brought beside serving, the least recently used put away
following.py    which version new requests get, as the registry says it now
splitting.py    canaries: one name, shares of its traffic
tenants.py      whose key it is, what it may reach, how often
errors.py       errors as OpenAI's clients read them
schemas.py      the bodies of requests and answers
app.py          the endpoints
admin.py        metrics, what is loaded, drain: on an address of their own
metrics.py      what Prometheus is told
logs.py         one JSON line an event, with the request's id
server.py       `serve`: listens, drains, ends
vllm.py         a resolver for vLLM: registry references as names of adapters

Does not train, compare or register. Needs the extra `serve`.
"""
