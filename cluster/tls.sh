# Sourced, not run: from here on scheduler, workers and clients speak to each other alone, encrypted.
#
#     source cluster/tls.sh && sbatch cluster/slurm-batch.sh ...
#
# Without it whoever reaches the scheduler's port, which on a shared machine is everybody, can run code in your name.
# The key lies in a file in the current folder that only you can read; all nodes have to see it. Remove it afterwards.
# shellcheck shell=bash
pem=$(mktemp "$PWD/.geodl-dask-tls-XXXX.pem")
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj /CN=geodl-dask \
    -keyout "$pem" -out "$pem.cert" 2>/dev/null
cat "$pem.cert" >>"$pem" && rm "$pem.cert"
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$pem
for role in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$pem" "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$pem"
done
