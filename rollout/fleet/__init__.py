"""The rollout fleet: engines at work on batches of requests, whatever happens to one of them. The driver talks to
`RolloutFleet`; one thread with an asyncio loop owns all engines. It imports `rollout` and `common`.
"""
