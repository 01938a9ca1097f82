"""nginx in front of a server of ours, as people put it there."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/bin")
CONFIG = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection "upgrade";
{settings}
}}
"""


@contextmanager
def running_nginx(folder: Path, settings: str) -> Iterator[None]:
    """nginx with these `settings` of its http block; it keeps its files in `folder`."""
    config, errors = folder / "nginx.conf", folder / "error.log"
    config.write_text(CONFIG.format(folder=folder, settings=settings))
    process = subprocess.Popen([str(NGINX), "-p", folder, "-c", config, "-e", errors])
    for _ in range(400):
        if (folder / "pid").exists():
            break
        time.sleep(0.05)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)
