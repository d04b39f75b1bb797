#!/bin/sh
# Takes a bare host to an answering service over ssh, as a person with a list of commands would. `python -m tests.bench`
# holds site.yml against this. Usage, in the checkout: manual.sh FILES LOGIN@HOST [ssh options]
# FILES is a folder with what that person has written: .env, .env.migrate, accounts.sql, master.cnf, index_url.
set -eu
files=$1
shift

git archive HEAD app roles/python/files/poetry.txt | ssh "$@" tar -x
tar -C "$files" -c . | ssh "$@" tar -x
ssh "$@" sudo sh -eu <<'HOST'
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends nginx default-mysql-client python3-venv curl ca-certificates >/dev/null

index_url=$(cat index_url)
export POETRY_PYPI_MIRROR_URL="$index_url" POETRY_VIRTUALENVS_IN_PROJECT=true
export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
python3 -m venv /opt/poetry
/opt/poetry/bin/pip install --quiet --disable-pip-version-check --require-hashes --index-url "$index_url" \
    --requirement roles/python/files/poetry.txt

mysql --defaults-extra-file=master.cnf <accounts.sql
useradd --system --shell /usr/sbin/nologin nba
mv app /srv/nba
mv .env .env.migrate /srv/nba/
cd /srv/nba
chown root:nba . .env
chmod 0640 .env
chmod 0600 .env.migrate
/opt/poetry/bin/poetry sync --only=main --no-root --no-interaction --quiet
.venv/bin/alembic --raiseerr upgrade head
.venv/bin/python -m nba.seed

cat >/etc/systemd/system/nba.service <<'UNIT'
[Unit]
After=network-online.target

[Service]
Type=notify
NotifyAccess=all
User=nba
WorkingDirectory=/srv/nba
ExecStart=/srv/nba/.venv/bin/gunicorn -k asgi -w 2 -b 127.0.0.1:8000 --no-control-socket nba.main:app
Restart=always

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet --now nba

cat >/etc/nginx/sites-available/nba <<'SITE'
server {
    listen 80 default_server;
    root /srv/nba/frontend;
    location /api/ {
        proxy_pass http://127.0.0.1:8000/;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
    }
}
SITE
rm /etc/nginx/sites-enabled/default
ln -s ../sites-available/nba /etc/nginx/sites-enabled/nba
nginx -t -q
systemctl reload nginx
timeout 60 sh -c 'until curl -fs -o /dev/null http://127.0.0.1/api/users; do sleep 0.1; done'
HOST
