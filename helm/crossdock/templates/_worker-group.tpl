{{/* Takes {root, pool}: one worker group of the RayCluster. A replica of the pool is `numOfHosts`
pods. The pods' own resource of Ray leads the pool's ranks to them. */}}
{{- define "crossdock.workerGroup" -}}
{{- $root := .root }}
{{- $values := index .root.Values .pool }}
{{- $perHost := int (include "crossdock.ranksPerHost" .) }}
{{- $metricsPort := int (include "crossdock.metricsPort" (dict "root" $root "process" "worker")) }}
{{- $tokenPort := eq .pool "decode" | ternary (int (include "crossdock.tokenStreamPort" $root)) 0 }}
{{- $replicas := int (include "crossdock.replicas" .) }}
{{- $labels := dict "app.kubernetes.io/component" .pool | merge (include "crossdock.selectorLabels" $root | fromYaml) }}
groupName: {{ .pool }}
replicas: {{ $replicas }}
minReplicas: {{ $replicas }}
maxReplicas: {{ $replicas }}
numOfHosts: {{ include "crossdock.hosts" . }}
rayStartParams:
  object-store-memory: {{ include "crossdock.objectStore" $root | quote }}
  resources: {{ printf "\"{\\\"crossdock_%s\\\": %d}\"" .pool $perHost | squote }}
template:
  metadata:
    labels:
      {{- include "crossdock.selectorLabels" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .pool }}
      {{- with $values.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $values.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- include "crossdock.podSpec" $root | nindent 4 }}
    {{- include "crossdock.placement" (dict "root" $root "values" $values) | nindent 4 }}
    {{- include "crossdock.topologySpread" (dict "constraints" $values.topologySpreadConstraints "labels" (toYaml $labels)) | nindent 4 }}
    {{- with $values.runtimeClassName }}
    runtimeClassName: {{ . | quote }}
    {{- end }}
    # The drain, and what Ray takes to end.
    terminationGracePeriodSeconds: {{ add $values.drainSeconds 60 }}
    {{- include "crossdock.modelInitContainers" (dict "root" $root "weights" true) | nindent 4 }}
    containers:
      - name: ray-worker
        {{- include "crossdock.container" $root | nindent 8 }}
        # Each rank tells its metrics on the first of these that is free.
        ports:
          {{- range $rank := until $perHost }}
          - {name: crossdock-{{ $rank }}, containerPort: {{ add $metricsPort $rank }}}
          {{- end }}
          {{- if $tokenPort }}
          - {name: tokens, containerPort: {{ $tokenPort }}}
          {{- end }}
        env:
          {{- include "crossdock.env" $root | nindent 10 }}
          {{- include "crossdock.operatorEnv" $root | nindent 10 }}
        resources:
          {{- include "crossdock.workerResources" . | nindent 10 }}
        lifecycle:
          preStop:
            exec:
              # Ray's shell would not pass a signal on.
              command:
                - bash
                - -c
                - >-
                  crossdock drain-node "$POD_IP"
                  --address {{ include "crossdock.controllerHost" $root }}:50052
                  --limit {{ $values.drainSeconds }} --timeout {{ add $values.drainSeconds 30 }};
                  ray stop --grace-period 10
        startupProbe:
          {{- include "crossdock.rayProbe" 60 | nindent 10 }}
        livenessProbe:
          {{- include "crossdock.rayProbe" 12 | nindent 10 }}
        # Only with a worker in it that has loaded its model: nodes are drained one after the other.
        readinessProbe:
          httpGet: {path: /health, port: crossdock-0{{ if $root.Values.tls.enabled }}, scheme: HTTPS{{ end }}}
          periodSeconds: 5
          timeoutSeconds: 5
        volumeMounts:
          {{- include "crossdock.volumeMounts" $root | nindent 10 }}
          {{- include "crossdock.tlsMount" $root | nindent 10 }}
          {{- if $tokenPort }}
          {{- include "crossdock.doorsMount" $root | nindent 10 }}
          {{- end }}
          - name: shm
            mountPath: /dev/shm
    volumes:
      {{- include "crossdock.volumes" $root | nindent 6 }}
      {{- include "crossdock.tlsVolume" $root | nindent 6 }}
      {{- if $tokenPort }}
      {{- include "crossdock.doorsVolume" $root | nindent 6 }}
      {{- end }}
      - name: shm
        emptyDir:
          medium: Memory
          sizeLimit: 1Gi
{{- end }}

{{/* Bytes of Ray's store, which holds arguments of calls and nothing of requests. */}}
{{- define "crossdock.objectStore" -}}
200000000
{{- end }}

{{/* What Ray's agent on the node says of it. */}}
{{- define "crossdock.rayProbe" -}}
httpGet:
  path: /api/healthz
  port: 52365
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: {{ . }}
{{- end }}

{{/* Takes {root, pool}. */}}
{{- define "crossdock.workerResources" -}}
{{- $values := index .root.Values .pool }}
{{- $resources := default .root.Values.resources $values.resources | deepCopy }}
{{- if eq (include "crossdock.device" .root) "cuda" }}
{{- $gpus := dict $values.gpuResource (int (include "crossdock.ranksPerHost" .)) }}
{{- $_ := set $resources "limits" (merge (get $resources "limits" | default dict) $gpus) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
