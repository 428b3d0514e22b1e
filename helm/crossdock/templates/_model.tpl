{{/* The model's folder in every pod, by `model.source`. */}}

{{- define "crossdock.modelVolume" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ required "model.pvc.claimName: name the claim that holds the model" $model.pvc.claimName | quote }}
    readOnly: true
{{- else if eq $model.source "imageVolume" }}
- name: model
  image:
    reference: {{ required "model.imageVolume.reference: name the image that holds the model" $model.imageVolume.reference | quote }}
    pullPolicy: {{ $model.imageVolume.pullPolicy }}
{{- else if eq $model.source "huggingface" }}
- name: model
  emptyDir:
    sizeLimit: {{ $model.huggingface.sizeLimit | quote }}
{{- end }}
{{- end }}

{{- define "crossdock.modelMount" -}}
{{- $model := .Values.model }}
{{- if ne $model.source "image" }}
- name: model
  mountPath: {{ include "crossdock.modelPath" . | quote }}
  readOnly: true
  {{- if and (eq $model.source "pvc") $model.pvc.subPath }}
  subPath: {{ $model.pvc.subPath | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Takes {root, weights}: routers only read prompts and write answers. */}}
{{- define "crossdock.modelInitContainers" -}}
{{- $weights := .weights }}
{{- with .root }}
{{- $model := .Values.model }}
{{- if eq $model.source "huggingface" }}
{{- $path := include "crossdock.modelPath" . }}
initContainers:
  - name: download-model
    {{- include "crossdock.container" . | nindent 4 }}
    command: [hf, download]
    args:
      - {{ required "model.huggingface.repository: name the model, e.g. meta-llama/Llama-3.1-8B-Instruct" $model.huggingface.repository | quote }}
      - {{ printf "--revision=%s" $model.huggingface.revision | quote }}
      - {{ printf "--local-dir=%s" $path | quote }}
      - --include=*.json
      {{- if $weights }}
      - --include=*.safetensors
      {{- end }}
      - --include=*.jinja
    env:
      - name: HOME
        value: /tmp
      {{- if $model.huggingface.tokenSecret.name }}
      - name: HF_TOKEN
        valueFrom:
          secretKeyRef:
            name: {{ $model.huggingface.tokenSecret.name | quote }}
            key: {{ $model.huggingface.tokenSecret.key | quote }}
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      requests: {cpu: 500m, memory: 512Mi}
      limits: {memory: 2Gi}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: model
        mountPath: {{ $path | quote }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
{{- end }}
{{- end }}
