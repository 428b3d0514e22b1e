"""What several routers of one cluster share by way of Redis.

Pure: when to use the store (``store_health``), which workers there are while the controller is
away (``registry_mirror``), what others have under way (``shared_load``), the wire of it
(``router_news``); places of tenants with limits are in ``router.admission``. Shells:
``redis_store`` (one Redis), ``replication`` (the tasks of one router).
"""
